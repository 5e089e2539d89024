"""What a training run leaves behind and everything else starts from: a network with all that
sampling it needs.

A generator's folder is `config.json` (backbone, process, prediction, tokenizer, guidance, changes)
beside `model.safetensors` (the network's weights, packed where it was quantized).
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Protocol

import torch
from torch import nn

from genvis.backbones import BACKBONES
from genvis.checkpoint import load_state, read_folder, save_folder
from genvis.config import config
from genvis.models import MODELS, model_folder, read_model
from genvis.processes import PREDICTIONS, PROCESSES
from genvis.processes.along import Along
from genvis.processes.denoiser import Denoiser
from genvis.processes.guidance import Clipped, Guided, Interval
from genvis.samplers import CHANGES, GRIDS, SOLVERS
from genvis.samplers.diffusion import DiffusionSampler
from genvis.samplers.grids import Grid, Uniform
from genvis.samplers.solvers import Euler, Solver
from genvis.tokenizers import TOKENIZERS
from genvis.types import BackboneConfig, Denoise, Prediction, Process, Tokenizer, TokenizerConfig


class Change(Protocol):
    """Something done to a network before it enters a denoiser, such as quantization."""

    def apply(self, net: nn.Module) -> nn.Module: ...


@config
class Guidance:
    """scale 1 is no guidance. See `processes.guidance` for what each number does."""

    scale: float = 1.0
    channels: int | None = None  # guide only the first ones: 3 for the published DiT samples
    interval: tuple[float, float] = (0.0, 1.0)  # shares of the path, from clean, where it is on
    rescale: float = 0.0
    # the folder of a weaker generator of the same latents, for autoguidance instead of dropping
    weak: str | None = None

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0 <= low < high <= 1 or not 0 <= self.rescale <= 1:
            raise ValueError(
                "interval must be (low, high) with 0 <= low < high <= 1 and rescale in [0, 1], got "
                f"{self.interval} and {self.rescale}"
            )
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"channels must be at least 1, got {self.channels}")


NOTHING_GUIDED = Guidance()


@config
class SamplerConfig:
    """How to sample: what a generator's folder suggests and a command line overrides."""

    solver: Annotated[Solver, SOLVERS] = Euler()
    grid: Annotated[Grid, GRIDS] = Uniform()
    steps: int = 50
    guidance: Guidance = NOTHING_GUIDED
    clip: float | None = None  # keep every x0 in [-clip, clip]: 1 for pixels

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip must be positive, got {self.clip}")


@config
class GeneratorConfig:
    backbone: Annotated[BackboneConfig, BACKBONES]
    process: Annotated[Process, PROCESSES]
    prediction: Annotated[Prediction, PREDICTIONS]
    tokenizer: Annotated[TokenizerConfig, TOKENIZERS]
    sampler: SamplerConfig = SamplerConfig()
    changes: tuple[Annotated[Change, CHANGES], ...] = ()

    def __post_init__(self) -> None:
        t = torch.tensor(self.process.times[1], dtype=torch.float64)
        (alpha, sigma), (p, q) = self.process.coeffs(t), self.prediction.row(self.process, t)
        if (determinant := alpha * q - sigma * p) == 0 or not determinant.isfinite():
            raise ValueError(
                f"prediction {type(self.prediction).__name__} says nothing about x0 at the noise "
                f"end of {type(self.process).__name__}, where sampling starts: narrow process.ends "
                "or choose another"
            )

    def build(self) -> "Generator":
        """With fresh weights; the changes are applied to them, so that changed weights can be
        loaded.
        """
        net = self.backbone.build()
        for change in self.changes:
            net = change.apply(net)
        return Generator(self, net, self.tokenizer.build())


@dataclass(frozen=True)
class Generator:
    config: GeneratorConfig
    net: nn.Module
    tokenizer: Tokenizer

    @classmethod
    def from_pretrained(cls, source: str | Path, *, trust_code: bool = False) -> "Generator":
        """From a model folder, a finished run's folder or a hub id; on the CPU, in eval mode."""
        source = model_folder(source)
        saved = read_folder(source)
        chosen = read_model(saved, source, GeneratorConfig, trust_code=trust_code)
        generator = chosen.build()
        load_state(generator.net, saved.tensors, str(source))
        generator.net.eval().requires_grad_(False)
        return generator

    def save_pretrained(self, folder: str | Path) -> None:
        save_folder(folder, MODELS.dump(self.config), self.net.state_dict())

    def to(self, device: torch.device | str) -> "Generator":
        """On another device; this one's network stays where it is."""
        if next(self.net.parameters()).device == torch.device(device):
            return self
        net, tokenizer = copy.deepcopy((self.net, self.tokenizer))
        return replace(self, net=net.to(device), tokenizer=tokenizer.to(device))

    def changed(self, *changes: Change) -> "Generator":
        """The same generator with more changes applied to its network."""
        net = self.net
        for change in changes:
            net = change.apply(net)
        return Generator(
            replace(self.config, changes=(*self.config.changes, *changes)),
            net.eval(),
            self.tokenizer,
        )

    def denoiser(self, guidance: Guidance = NOTHING_GUIDED) -> Denoise:
        denoise = Denoiser(self.net, self.config.process, self.config.prediction)
        if guidance.scale == 1:
            return denoise
        weak = None if guidance.weak is None else self._weak(guidance.weak)
        guided = Guided(denoise, guidance.scale, guidance.channels, guidance.rescale, weak)
        everywhere = guidance.interval == (0, 1)
        return guided if everywhere else Interval(guided, denoise, guidance.interval)

    def _weak(self, source: str) -> Denoise:
        weak = Generator.from_pretrained(source).to(next(self.net.parameters()).device)
        if weak.config.backbone.shape != self.config.backbone.shape:
            raise ValueError(
                f"guidance.weak {source} makes latents {weak.config.backbone.shape}, this "
                f"generator {self.config.backbone.shape}"
            )
        if weak.config.tokenizer != self.config.tokenizer:
            raise ValueError(f"guidance.weak {source} has another tokenizer than this generator")
        same = weak.config.process == self.config.process
        return weak.denoiser() if same else Along(weak.denoiser(), self.config.process)

    def sampler(self, config: SamplerConfig | None = None) -> DiffusionSampler:
        """A sampler of these weights; without a config, as the generator's own config suggests."""
        config = config or self.config.sampler
        denoise = self.denoiser(config.guidance)
        return DiffusionSampler(
            denoise=denoise if config.clip is None else Clipped(denoise, config.clip),
            tokenizer=self.tokenizer,
            solver=config.solver,
            times=config.grid(self.config.process, config.steps),
            noise_shape=self.config.backbone.shape,
            device=next(self.net.parameters()).device,
        )
