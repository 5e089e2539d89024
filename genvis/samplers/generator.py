"""What a training run leaves behind and everything else starts from: a network with all that
sampling it needs.

A generator's folder is `config.json` (backbone, process, prediction, tokenizer, guidance, changes)
beside `model.safetensors` (the network's weights, packed where it was quantized).
"""

import copy
import hashlib
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
from genvis.processes.denoiser import Denoiser
from genvis.processes.guidance import Guided
from genvis.samplers import CHANGES, SOLVERS
from genvis.samplers.diffusion import DiffusionSampler, uniform_times
from genvis.samplers.solvers import Euler, Solver
from genvis.tokenizers import TOKENIZERS
from genvis.types import BackboneConfig, Denoise, Prediction, Process, Tokenizer, TokenizerConfig


class Change(Protocol):
    """Something done to a network before it enters a denoiser, such as quantization."""

    def apply(self, net: nn.Module) -> nn.Module: ...


@config
class SamplerConfig:
    """How to sample: what a generator's folder suggests and a command line overrides."""

    solver: Annotated[Solver, SOLVERS] = Euler()
    steps: int = 50
    guidance: float = 1.0  # classifier-free guidance scale; 1 is none
    # guide only the first ones (3 reproduces the published DiT samples)
    guided_channels: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")


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
        if alpha * q == sigma * p:
            raise ValueError(
                f"prediction {type(self.prediction).__name__} says nothing about x0 at the noise "
                f"end of {type(self.process).__name__}, where sampling starts"
            )

    def build(self) -> "Generator":
        """With fresh weights; the changes are applied to them, so that changed weights can be
        loaded.
        """
        net = self.backbone.build()
        for change in self.changes:
            net = change.apply(net)
        return Generator(self, net, self.tokenizer.build())


def fingerprint(source: str | Path) -> str:
    """What tells these weights from others: the sha256 of a local model's file, or the hub id."""
    file = Path(model_folder(source)) / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else str(source)


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

    def denoiser(self, guidance: float = 1.0, channels: int | None = None) -> Denoise:
        denoise: Denoise = Denoiser(self.net, self.config.process, self.config.prediction)
        return denoise if guidance == 1 else Guided(denoise, guidance, channels)

    def sampler(self, config: SamplerConfig | None = None) -> DiffusionSampler:
        """A sampler of these weights; without a config, as the generator's own config suggests."""
        config = config or self.config.sampler
        return DiffusionSampler(
            denoise=self.denoiser(config.guidance, config.guided_channels),
            tokenizer=self.tokenizer,
            solver=config.solver,
            times=uniform_times(self.config.process, config.steps),
            noise_shape=self.config.backbone.shape,
            device=next(self.net.parameters()).device,
        )
