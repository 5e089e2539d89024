"""Finite scalar quantization: every dimension is squashed and rounded to one of its levels.

Source: Mentzer et al. 2024, "Finite Scalar Quantization: VQ-VAE Made Simple", section 3.1 and
appendix A; the symmetric variant puts the levels at equal steps of [-1, 1], which two levels need.
Letters: B rows, d dimensions, L_i levels of dimension i.
"""

import math

import torch
from torch import Tensor, nn

from genvis.config import config
from genvis.random import Keys
from genvis.tokenizers.quantizers.quantized import Quantized, statistics, straight_through

MARGIN = 1e-3  # so that the outermost levels are reached


@config
class FSQConfig:
    levels: tuple[int, ...] = (8, 6, 5)
    symmetric: bool = False

    def __post_init__(self) -> None:
        least = 2 if self.symmetric else 3
        if not self.levels or min(self.levels) < least:
            raise ValueError(f"levels must each be at least {least}, got {self.levels}")

    @property
    def num_codes(self) -> int:
        return math.prod(self.levels)

    @property
    def inputs(self) -> int:
        return len(self.levels)

    @property
    def width(self) -> int:
        return len(self.levels)

    def build(self) -> "FSQ":
        return FSQ(self)


class FSQ(nn.Module):
    """No codebook and no loss."""

    levels: Tensor
    basis: Tensor

    def __init__(self, config: FSQConfig) -> None:
        super().__init__()
        self.config = config
        levels = torch.tensor(config.levels)
        basis = torch.cat([torch.ones(1, dtype=torch.int64), levels[:-1].cumprod(0)])
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("basis", basis, persistent=False)

    def forward(self, f: Tensor, keys: Keys | None = None) -> Quantized:
        """f (B, ..., d) -> codes in [-1, 1]; the first dimension varies fastest in an index."""
        bounded, offset = self.bound(f.float())
        level = (bounded - offset + 0.5).floor()  # 0..L-1; half-way goes up
        z = self.place(straight_through(bounded - offset, level))
        indices = (level.long() * self.basis).sum(-1)
        free = z.new_zeros(len(f))
        return Quantized(z, indices, free, statistics(indices, self.config.num_codes))

    def bound(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """f squashed to a range of L - 1, and where its lowest level lies."""
        steps = (self.levels - 1).to(f)
        if self.config.symmetric:
            return steps * f.tanh() / 2, -steps / 2
        half, low = steps * (1 + MARGIN) / 2, -(self.levels // 2).to(f)
        even = (self.levels % 2 == 0).to(f) / 2
        return (f + (even / half).atanh()).tanh() * half - even, low

    def place(self, level: Tensor) -> Tensor:
        """Levels 0..L-1 as numbers in [-1, 1]."""
        if self.config.symmetric:
            return 2 * level / (self.levels - 1) - 1
        middle = self.levels // 2
        return (level - middle) / middle

    def level_indices(self, indices: Tensor) -> Tensor:
        """(...) -> (..., d), the level of every dimension."""
        return indices[..., None] // self.basis % self.levels

    def codes(self, indices: Tensor) -> Tensor:
        return self.place(self.level_indices(indices).float())
