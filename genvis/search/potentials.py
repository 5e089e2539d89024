"""Potentials: how a trajectory's weight grows with the scores of its previews.

Sources: Singhal et al. 2025, "A General Framework for Inference-time Scaling and Steering of
Diffusion Models" (difference, max, sum); Kim et al. 2025, "Test-time Alignment of Diffusion Models
without Reward Over-optimization" (tempered); "TTS-VAR", 2025 (value).
Letters: tilt = lam score; G_k the potential at step k. At the end every lineage gets
log G = tilt - (log G so far), so that its weight is exp(tilt) whatever came before: previews change
the variance of the answer, never its expectation.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from genvis.config import config


@dataclass(frozen=True)
class Memory:
    """What a lineage remembers of its tilts, one number a row: the largest, their sum, and the sum
    of log G that its weight has been paid.
    """

    largest: Tensor
    total: Tensor
    log_g: Tensor

    @classmethod
    def blank(cls, rows: int) -> "Memory":
        zero = torch.zeros(rows, dtype=torch.float64)
        return cls(zero - torch.inf, zero, zero)

    def hear(self, tilt: Tensor) -> "Memory":
        return Memory(torch.maximum(self.largest, tilt), self.total + tilt, self.log_g)

    def paid(self, log_g: Tensor) -> "Memory":
        return Memory(self.largest, self.total, self.log_g + log_g)

    def unpaid(self) -> "Memory":
        """Where the weights that log G went into are gone."""
        return Memory(self.largest, self.total, torch.zeros_like(self.log_g))


class Potential(Protocol):
    """log G of a preview after k steps; `memory` has heard its tilt already."""

    weighs: ClassVar[bool]  # whether it asks for scores on the way
    ranks: ClassVar[bool]  # whether each of them counts only beside those of the same step

    def __call__(self, tilt: Tensor, memory: Memory, k: int) -> Tensor: ...
    def level(self, k: int) -> float:
        """The share of the tilt that holds after k steps."""
        ...


@config
class _Full:
    weighs: ClassVar[bool] = True
    ranks: ClassVar[bool] = False

    def level(self, k: int) -> float:
        return 1.0


@config
class Terminal(_Full):
    """All at the end: importance sampling."""

    weighs: ClassVar[bool] = False

    def __call__(self, tilt: Tensor, memory: Memory, k: int) -> Tensor:
        return torch.zeros_like(tilt)


@config
class Difference(_Full):
    """What the tilt gained since it was last seen; the first time, all of it."""

    def __call__(self, tilt: Tensor, memory: Memory, k: int) -> Tensor:
        return self.level(k) * tilt - memory.log_g  # log G adds up to the tilt that was last seen


@config
class Tempered(Difference):
    """The difference of level(k) tilt, with level(k) = min((1 + gamma)^k - 1, 1)."""

    gamma: float = 0.008

    def __post_init__(self) -> None:
        if self.gamma <= 0:
            raise ValueError(f"gamma must be positive, got {self.gamma}")

    def level(self, k: int) -> float:
        return min((1 + self.gamma) ** k - 1, 1.0)


@config
class Largest(_Full):
    """The largest tilt so far. Sane at a few scheduled steps only: at all of them it tilts far
    beyond the target and leaves the last weights to undo it.
    """

    def __call__(self, tilt: Tensor, memory: Memory, k: int) -> Tensor:
        return memory.largest


@config
class Total(_Full):
    """The sum of all tilts so far; sane at a few scheduled steps only."""

    def __call__(self, tilt: Tensor, memory: Memory, k: int) -> Tensor:
        return memory.total


@config
class Value(_Full):
    """The tilt as it is: for searches that keep the best."""

    ranks: ClassVar[bool] = True

    def __call__(self, tilt: Tensor, memory: Memory, k: int) -> Tensor:
        return tilt
