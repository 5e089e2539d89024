"""What a model folder can hold: the `name` in its config.json chooses from here."""

from pathlib import Path
from typing import TypeVar

from genvis.checkpoint import CONFIG, WEIGHTS, Saved, file_sha256
from genvis.config import ConfigError, Table

T = TypeVar("T")

MODELS = Table(
    "model",
    {
        "generator": "genvis.samplers.generator:GeneratorConfig",
        "scale_generator": "genvis.samplers.scale_generator:ScaleGeneratorConfig",
        "classifier": "genvis.features.classifier:ClassifierConfig",
        "tokenizer": "genvis.tokenizers.model:TokenizerModelConfig",
        "clip": "genvis.integrations.transformers_clip:CLIPModelConfig",
    },
)


def model_folder(source: str | Path) -> str | Path:
    """The model inside the folder of a run or of its checkpoint; anything else as it is."""
    folder = Path(source) / "model"
    if (Path(source) / "step.json").exists():
        return folder
    if not (Path(source) / "run.json").exists():
        return source
    if not folder.is_dir():
        raise ValueError(
            f"{source}: this run has no model yet; run its training to the end, or name one of its "
            "checkpoints, checkpoints/step_N"
        )
    return folder


def fingerprint(source: str | Path) -> str:
    """What tells these weights from others: the sha256 of a local model's file, or the hub id."""
    file = Path(model_folder(source)) / WEIGHTS
    return file_sha256(file) if file.exists() else str(source)


def read_model(
    saved: Saved,
    source: str | Path,
    wanted: type[T] | tuple[type[T], ...],
    *,
    trust_code: bool = False,
) -> T:
    """The config of a model folder, which must be a `wanted`. ConfigError names the folder."""
    try:
        found = MODELS.build(saved.config, trust_code=trust_code)
    except ConfigError as error:
        reason = "; ".join(str(error).splitlines())
        raise ConfigError(f"{source}: {CONFIG}: {reason}") from error
    if not isinstance(found, wanted):
        kinds = wanted if isinstance(wanted, tuple) else (wanted,)
        expected = " or ".join(MODELS.name_of(kind) for kind in kinds)
        raise ConfigError(f"{source}: holds a {MODELS.name_of(found)}, expected a {expected}")
    return found
