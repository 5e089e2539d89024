"""Diffusion coefficients w(t) >= 0 of dx = (velocity - w score) dt + sqrt(2 w) dW.

Every w has the same marginals as the probability-flow ODE; w = 0 is the ODE.
Sources: Ma et al. 2024, "SiT", section 2.4 and released code (its paper writes 2 w); Kim et al.
2025, "Inference-Time Scaling for Flow Models via Stochastic Generation and Rollover Budget
Forcing", section 4 and released code (`Volatility`; its default is g = 3 t^2).
"""

import math
from typing import Literal, Protocol

import torch
from torch import Tensor

from genvis.config import config
from genvis.types import Process


class Diffusion(Protocol):
    def __call__(self, process: Process, t: Tensor) -> Tensor: ...


@config
class _Scaled:
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.scale < 0:
            raise ValueError(f"scale must be at least 0, got {self.scale}")


@config
class Sigma(_Scaled):
    """w = scale sigma(t), which vanishes with the noise."""

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        return self.scale * process.coeffs(t)[1]


@config
class Reverse(_Scaled):
    """w = scale (sigma sigma' - sigma^2 alpha' / alpha): at scale 1 the exact reverse of the
    process ("SBDM"). Infinite where alpha = 0.
    """

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        (alpha, sigma), (d_alpha, d_sigma) = process.coeffs(t), process.rates(t)
        return self.scale * (sigma * d_sigma - sigma**2 * d_alpha / alpha)


@config
class Power(_Scaled):
    """w = scale share^exponent: constant for 0, linear for 1. g = 3 t^2: scale 4.5, exponent 4."""

    exponent: float = 0.0

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        return self.scale * process.share(t) ** self.exponent


@config
class Decreasing(_Scaled):
    """w = (1 - scale cos(pi share))^2 / 4: large at the noise end, and falling."""

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        return 0.25 * (1 - self.scale * torch.cos(math.pi * process.share(t))) ** 2


@config
class Sine(_Scaled):
    """w = scale sin^2(pi share): zero at both ends."""

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        return self.scale * torch.sin(math.pi * process.share(t)) ** 2


@config
class Volatility(_Scaled):
    """w = g^2 / 2 for g = scale shape(share): a power of the share, sigma, sin(pi share / 2),
    tan(pi share / 2) up to 0.95, max(0, 2 share - 1), or exp(-((share - 1) / 0.1)^2).
    """

    shape: Literal["constant", "linear", "square", "sigma", "sin", "tan", "clipping", "exp"] = (
        "square"
    )

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        return (self.scale * self._shape(process, t)) ** 2 / 2

    def _shape(self, process: Process, t: Tensor) -> Tensor:
        s = process.share(t)
        match self.shape:
            case "constant":
                return torch.ones_like(s)
            case "linear":
                return s
            case "square":
                return s**2
            case "sigma":
                return process.coeffs(t)[1]
            case "sin":
                return torch.sin(math.pi / 2 * s)
            case "tan":
                return torch.tan(math.pi / 2 * s.clamp(max=0.95))
            case "clipping":
                return (2 * s - 1).clamp(min=0)
            case "exp":
                return torch.exp(-(((s - 1) / 0.1) ** 2))
