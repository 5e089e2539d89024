"""A network along a Gaussian path with all that sampling it needs: what a diffusion training run
leaves behind and everything else starts from.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from genvis.backbones import BACKBONES
from genvis.config import config
from genvis.processes import PREDICTIONS, PROCESSES
from genvis.processes.along import Along
from genvis.processes.denoiser import Denoiser
from genvis.processes.guidance import Clipped, Guided, Interval
from genvis.samplers import CHANGES, GRIDS, SOLVERS
from genvis.samplers.base import BaseGenerator, Change, apply, check_same_text, told
from genvis.samplers.diffusion import DiffusionSampler
from genvis.samplers.grids import Grid, Uniform
from genvis.samplers.solvers import Euler, Solver
from genvis.text import TEXTS
from genvis.text.prompted import PromptedMaps
from genvis.tokenizers import TOKENIZERS
from genvis.types import (
    BackboneConfig,
    Denoise,
    Prediction,
    Process,
    TextEncoderConfig,
    Tokenizer,
    TokenizerConfig,
)


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
    """How to sample along a Gaussian path."""

    kind: ClassVar[str] = "generator"
    solver: Annotated[Solver, SOLVERS] = Euler()
    grid: Annotated[Grid, GRIDS] = Uniform()
    steps: int = 50
    guidance: Guidance = NOTHING_GUIDED
    clip: float | None = None  # keep every x0 in [-clip, clip]: 1 for pixels
    along: Annotated[Process, PROCESSES] | None = None  # another path than the network's own

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip must be positive, got {self.clip}")

    @property
    def others(self) -> tuple[str, ...]:
        return () if self.guidance.weak is None else (self.guidance.weak,)

    @property
    def guided(self) -> bool:
        """Whether the network is asked without the condition, or with the negative one, too."""
        return self.guidance.scale != 1 and self.guidance.weak is None

    def build(self, generator: "Generator") -> DiffusionSampler:
        denoise = generator.denoiser(self.guidance)
        if self.along is not None:
            denoise = Along(denoise, self.along)
        return DiffusionSampler(
            denoise=denoise if self.clip is None else Clipped(denoise, self.clip),
            tokenizer=generator.tokenizer,
            solver=self.solver,
            times=self.grid(denoise.process, self.steps),
            noise_shape=generator.config.backbone.shape,
            device=generator.device,
        )


@config
class GeneratorConfig:
    backbone: Annotated[BackboneConfig, BACKBONES]
    process: Annotated[Process, PROCESSES]
    prediction: Annotated[Prediction, PREDICTIONS]
    tokenizer: Annotated[TokenizerConfig, TOKENIZERS]
    text: Annotated[TextEncoderConfig, TEXTS] | None = None  # what encodes prompts
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
        net = told(self.text, self.backbone.build(), PromptedMaps, self.backbone)
        return Generator(self, apply(self.changes, net), self.tokenizer.build())


@dataclass(frozen=True)
class Generator(BaseGenerator):
    kind: ClassVar[str] = "generator"
    config: GeneratorConfig
    tokenizer: Tokenizer

    def denoiser(self, guidance: Guidance = NOTHING_GUIDED) -> Denoise:
        denoise = Denoiser(self.net, self.config.process, self.config.prediction)
        if guidance.scale == 1:
            return denoise
        weak = None if guidance.weak is None else self._weak(guidance.weak)
        guided = Guided(denoise, guidance.scale, guidance.channels, guidance.rescale, weak)
        everywhere = guidance.interval == (0, 1)
        return guided if everywhere else Interval(guided, denoise, guidance.interval)

    def _weak(self, source: str) -> Denoise:
        weak = Generator.from_pretrained(source).to(self.device)
        if weak.config.backbone.shape != self.config.backbone.shape:
            raise ValueError(
                f"guidance.weak {source} makes latents {weak.config.backbone.shape}, this "
                f"generator {self.config.backbone.shape}"
            )
        if weak.config.tokenizer != self.config.tokenizer:
            raise ValueError(f"guidance.weak {source} has another tokenizer than this generator")
        check_same_text(self, weak, f"guidance.weak {source}")
        same = weak.config.process == self.config.process
        return weak.denoiser() if same else Along(weak.denoiser(), self.config.process)
