"""A sampler of Gaussian images whose rows never mix, so that equalities hold to the last bit, and
a verifier of them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from genvis.processes.interpolants import VP
from genvis.random import HashKeys
from genvis.samplers.diffusion import DiffusionSampler
from genvis.samplers.solvers import Euler, Solver
from genvis.samplers.stochastic import DDIM
from genvis.types import Cond, Estimate, Process

PATH, DDPM = VP(), DDIM(eta=1.0)


@dataclass(frozen=True)
class Denoise:
    """The best estimate where data are N(0, 1 / 4)."""

    process: Process = PATH

    def evaluations(self, t: Tensor) -> int:
        return 1

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Estimate:
        alpha, sigma = (float(c) for c in self.process.coeffs(t.double()))
        x0 = x * (0.25 * alpha / (0.25 * alpha**2 + sigma**2))
        return Estimate(x0, (x - alpha * x0) / sigma)


class Pixels:
    """The tokenizer that changes nothing."""

    def decode(self, z: Tensor) -> Tensor:
        return z


@dataclass(frozen=True)
class Brightness:
    """The mean of an image, in every other row of pixels."""

    name: str = "brightness"
    differentiable: bool = True

    def __call__(self, images: Tensor, cond: Cond) -> Tensor:
        return images[:, 0, ::2].flatten(1).double().mean(1)


def sampler(steps: int = 6, solver: Solver = DDPM, side: int = 4) -> DiffusionSampler:
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    device = torch.device("cpu")
    return DiffusionSampler(Denoise(), Pixels(), solver, times, (3, side, side), device)  # type: ignore[arg-type]


ODE = sampler(solver=Euler())
SDE = sampler()


def prompts(count: int) -> tuple[Cond, HashKeys]:
    return Cond(label=torch.arange(count)), HashKeys.of(0, range(count))
