"""Rotary position embeddings: neighbouring channels (2i, 2i + 1) turn by position x frequency.

Sources: Su et al. 2021, "RoFormer", section 3.2; Heo et al. 2024, "Rotary Position Embedding for
Vision Transformer", section 3 (axial and mixed frequencies).
Letters: B batch, H heads, N tokens, d head width, P = d / 2 pairs; a rotation holds the cosines
and sines of N tokens as (2, ..., N, P) float32.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from genvis.kernels.attention import attention
from genvis.nn.transformer import SelfAttention


def frequencies(pairs: int, theta: float) -> Tensor:
    """theta^(-i / pairs), (pairs,) float32: from one turn in 2 pi tokens to almost none."""
    return (theta ** -(torch.arange(pairs, dtype=torch.float64) / pairs)).float()


def axial(axes: Sequence[Tensor], pairs: Sequence[int], theta: float) -> Tensor:
    """The rotation that gives each axis its own group of pairs, in order.

    axes: coordinates (..., N); pairs: the number of pairs for each.
    """
    angles = [
        axis.float()[..., None] * frequencies(n, theta).to(axis.device)
        for axis, n in zip(axes, pairs, strict=True)
    ]
    return rotation(torch.cat(angles, dim=-1))


def rotation(angles: Tensor) -> Tensor:
    """(..., N, P) -> (2, ..., N, P)."""
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, turn: Tensor | None) -> Tensor:
    """x (B, H, N, d) turned by a rotation that broadcasts to (2, B, H, N, P), in float32."""
    if turn is None:
        return x
    cos, sin = turn
    a, b = rearrange(x.float(), "... (p two) -> two ... p", two=2)
    turned = torch.stack([a * cos - b * sin, a * sin + b * cos])
    return rearrange(turned, "two ... p -> ... (p two)").to(x.dtype)


class RotaryAttention(SelfAttention):
    """Self-attention whose queries and keys are turned by their positions."""

    def forward(self, x: Tensor, turn: Tensor | None = None) -> Tensor:
        """x (B, N, D); turn a rotation, or None for no positions."""
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        out = attention(rotate(self.q_norm(q), turn), rotate(self.k_norm(k), turn), v)
        return self.drop(self.proj(rearrange(out, "b h n d -> b n (h d)")))
