"""A network and a scheduler of diffusers as a denoiser of ours, a pipeline's folder as a generator.

Our solvers, guidance, search, quantization and evaluation then run on it as on anything else.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from genvis.checkpoint import read_json
from genvis.integrations.diffusers_backbone import NETWORKS, DiffusersNet
from genvis.integrations.diffusers_models import load, pipeline_parts
from genvis.integrations.diffusers_scheduler import Schedule, schedule_of, scheduler_from
from genvis.integrations.diffusers_tokenizer import DiffusersTokenizerConfig
from genvis.processes.denoiser import Denoiser
from genvis.processes.guidance import Clipped
from genvis.samplers.generator import Generator, GeneratorConfig, SamplerConfig
from genvis.tokenizers.pixels import PixelsConfig
from genvis.types import Denoise, Prediction, TokenizerConfig


def denoiser(model: Any, scheduler: Any, null_class: bool = True) -> Denoise:
    """model: a UNet or DiT of diffusers; null_class: the last row of its label table is "no label".

    x0 is clipped where the scheduler clips, and eps is then what it leaves, as in
    `use_clipped_model_output`. ValueError names what has no counterpart here.
    """
    net, schedule = DiffusersNet.of(model, null_class), schedule_of(scheduler)
    prediction = prediction_of(schedule, net.config.learned_variance)
    found = Denoiser(net, schedule.process, prediction)
    return found if schedule.clip is None else Clipped(found, schedule.clip)


def from_pipeline(folder: str | Path, null_class: bool = True) -> Generator:
    """A generator from a pipeline's folder: its `unet` or `transformer`, scheduler and `vae`.

    The network is used as it is, a DiT with the frequencies of diffusers (see `diffusers_dit`).
    A latent generator keeps the folder's name in its config: its auto-encoder stays there. Text
    encoders are left out: text enters as `cond.text`. ValueError names what has no counterpart.
    """
    index = pipeline_parts(folder)
    parts = [name for name in ("unet", "transformer") if name in index]
    if not parts or "scheduler" not in index:
        raise ValueError(f"{folder}: a pipeline of a unet or transformer and a scheduler is needed")
    net = DiffusersNet.of(load(str(folder), NETWORKS, parts[0]), null_class)
    settings = read_json(Path(folder) / "scheduler" / "scheduler_config.json")
    schedule = schedule_of(scheduler_from(settings))
    config = GeneratorConfig(
        backbone=net.config,
        process=schedule.process,
        prediction=prediction_of(schedule, net.config.learned_variance),
        tokenizer=_tokenizer(folder, index, net),
        sampler=SamplerConfig(grid=schedule.grid, clip=schedule.clip),
    )
    return Generator(config, net.eval(), config.tokenizer.build())


def prediction_of(schedule: Schedule, learned_variance: bool) -> Prediction:
    """What a network under that schedule predicts. ValueError if it cannot be with a variance."""
    prediction: Any = schedule.prediction
    if not learned_variance:
        return prediction
    if not hasattr(prediction, "learned_variance"):
        raise ValueError("the network has twice the channels, and its scheduler no use for them")
    return replace(prediction, learned_variance=True)


def _tokenizer(folder: str | Path, index: Any, net: DiffusersNet) -> TokenizerConfig:
    if "vae" in index:
        return DiffusersTokenizerConfig(source=str(folder), subfolder="vae")
    if other := [name for name in ("vqvae", "movq", "vqgan") if name in index]:
        raise ValueError(f"{folder}: its {other[0]} has no counterpart here")
    return PixelsConfig(channels=net.config.shape[0])
