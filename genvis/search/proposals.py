"""Proposals: how a trajectory takes its next step, and by how much that misses the model's own.

Sources: Wu et al. 2023, "Practical and Asymptotically Exact Conditional Sampling in Diffusion
Models" (TDS); Kim et al. 2025, "Test-time Alignment of Diffusion Models without Reward
Over-optimization" (DAS).
Letters: m, s mean and standard deviation of the model's step; z normal; x' where it leads.
"""

from typing import ClassVar, Protocol

import torch
from torch import Tensor

from genvis.config import config
from genvis.search.metered import Metered, Population


class Proposal(Protocol):
    """twists: whether it needs the gradient of the score where trajectories stand."""

    twists: ClassVar[bool]

    def __call__(self, meter: Metered, them: Population, tilt: float) -> tuple[Population, Tensor]:
        """After one step, and log p(x') - log q(x') (rows,); tilt: what a score counts there."""
        ...


@config
class Own:
    """The sampler's own step."""

    twists: ClassVar[bool] = False

    def __call__(self, meter: Metered, them: Population, tilt: float) -> tuple[Population, Tensor]:
        return meter.step(them), torch.zeros(len(them), dtype=torch.float64)


@config
class Gradient:
    """x' = m + s^2 g + s z, where g is scale times the gradient of the tilt."""

    twists: ClassVar[bool] = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale must be positive, got {self.scale}")

    def __call__(self, meter: Metered, them: Population, tilt: float) -> tuple[Population, Tensor]:
        assert them.gradient is not None  # the engine twists before every step
        return meter.pushed(them, self.scale * tilt * them.gradient)
