"""Hadamard rotation of a layer's inputs, which spreads outlier channels over many.

With an orthogonal H, y = W x = (W H)(H^T x): nothing changes until something is rounded. H is
block-diagonal, its blocks Sylvester's Hadamard matrices of the largest power of two that divides
the inputs, scaled to be orthonormal. Such an H is symmetric and its own inverse.

Sources: Sylvester 1867; Ashkboos et al. 2024, "QuaRot".
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn


def block_size(inputs: int) -> int:
    """The largest power of two that divides `inputs`. ValueError if it is 1."""
    size = inputs & -inputs
    if size < 2:
        raise ValueError(f"rotate needs an even number of inputs, got {inputs}")
    return size


def hadamard(x: Tensor, size: int) -> Tensor:
    """x (..., I) H for blocks of `size`, a power of two that divides I; in float32 or better."""
    y = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, size))
    width = 1
    while width < size:  # fast Walsh-Hadamard transform: one level joins neighbours `width` apart
        a, b = rearrange(y, "... (n two w) -> two ... n w", two=2, w=width)
        y = rearrange([a + b, a - b], "two ... n w -> ... (n two w)")
        width *= 2
    return (y.flatten(-2) / math.sqrt(size)).to(x.dtype)


def rotated(weight: Tensor, size: int) -> Tensor:
    """A weight (O, I, ...) for rotated inputs; twice is the weight again, up to rounding."""
    return hadamard(weight.movedim(1, -1), size).movedim(-1, 1).contiguous()


class Rotation(nn.Module):
    """Tokens (..., I) to rotated tokens."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return hadamard(x, self.size)

    def extra_repr(self) -> str:
        return f"blocks of {self.size}"
