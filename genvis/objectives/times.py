"""Where on the path training looks: maps from uniforms (B,) in [0, 1) to levels in [0, 1], 0 clean
and 1 noise.
"""

from typing import Protocol

import torch
from torch import Tensor

from genvis.config import config


class TimeSampler(Protocol):
    def __call__(self, u: Tensor) -> Tensor: ...


@config
class Uniform:
    def __call__(self, u: Tensor) -> Tensor:
        return u


@config
class LogitNormal:
    """sigmoid(mean + std z). Esser et al. 2024, "Scaling Rectified Flow Transformers", 3.1."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"std must be positive, got {self.std}")

    def __call__(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u.clamp(1e-7, 1 - 1e-7)))
