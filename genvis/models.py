"""What a model folder can hold: the `name` in its config.json chooses from here."""

from pathlib import Path
from typing import TypeVar

from genvis.checkpoint import CONFIG, Saved
from genvis.config import ConfigError, Table

T = TypeVar("T")

MODELS = Table(
    "model",
    {
        "generator": "genvis.samplers.generator:GeneratorConfig",
        "classifier": "genvis.features.classifier:ClassifierConfig",
    },
)


def model_folder(source: str | Path) -> str | Path:
    """The model inside a run's folder; anything else as it is."""
    if not (Path(source) / "run.json").exists():
        return source
    folder = Path(source) / "model"
    if not folder.is_dir():
        raise ValueError(f"{source}: this run has no model yet; run its training to the end")
    return folder


def read_model(saved: Saved, source: str | Path, wanted: type[T], *, trust_code: bool = False) -> T:
    """The config of a model folder, which must be a `wanted`. ConfigError names the folder."""
    try:
        found = MODELS.build(saved.config, trust_code=trust_code)
    except ConfigError as error:
        reason = "; ".join(str(error).splitlines())
        raise ConfigError(f"{source}: {CONFIG}: {reason}") from error
    if not isinstance(found, wanted):
        kinds = (MODELS.dump(found)["name"], wanted.__name__.removesuffix("Config").lower())
        raise ConfigError(f"{source}: holds a {kinds[0]}, expected a {kinds[1]}")
    return found
