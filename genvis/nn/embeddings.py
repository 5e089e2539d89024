"""Embeddings of time, labels and positions.

Sources: Peebles and Xie 2023, "Scalable Diffusion Models with Transformers" (DiT), released code;
Vaswani et al. 2017, section 3.5 (sinusoids).
Letters: B batch, D width, K classes, h and w token rows and columns.
"""

import math

import torch
from torch import Tensor, nn

from genvis.types import Cond


def sinusoids(t: Tensor, width: int, period: float = 10_000.0) -> Tensor:
    """[cos(t f_k) | sin(t f_k)], f_k = period^(-k / (width/2)): t (B,) -> (B, width) float32."""
    half = width // 2
    decay = torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(period) / half)
    angles = t.float()[:, None] * decay.exp()
    return torch.cat([angles.cos(), angles.sin(), angles.new_zeros(len(t), width % 2)], dim=1)


def sinusoids_2d(width: int, h: int, w: int, span: float | None = None) -> Tensor:
    """Fixed position table (h w, width), row-major: the first half encodes the column, the second
    the row.

    Each half is [sin | cos] of coordinates, computed in float64: 0, 1, 2, ..., or, where both axes
    are to have one span, i span / h and j span / w. Width must be divisible by 4.
    """
    if width % 4:
        raise ValueError(f"width must be divisible by 4 for 2-D positions, got {width}")
    omega = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    steps = (1, 1) if span is None else (span / h, span / w)
    axes = [
        torch.arange(n, dtype=torch.float64) * step for n, step in zip((h, w), steps, strict=True)
    ]
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    halves = [axis.flatten()[:, None] * omega for axis in (columns, rows)]
    return torch.cat(
        [f(angles) for angles in halves for f in (torch.sin, torch.cos)], dim=1
    ).float()


class TimestepEmbedder(nn.Module):
    """Two layers on sinusoids of the network time, which stays float32 until the first."""

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """t (B,) -> (B, D)."""
        return self.mlp(sinusoids(t, self.frequencies).to(next(self.mlp.parameters()).dtype))


class LabelEmbedder(nn.Module):
    """A table of K classes and, where training drops labels, a last row for "no label"."""

    def __init__(self, num_classes: int, width: int, null_class: bool = True) -> None:
        super().__init__()
        self.num_classes, self.null_class = num_classes, null_class
        self.embedding_table = nn.Embedding(num_classes + null_class, width)

    def forward(self, cond: Cond) -> Tensor:
        """(B, D). Dropped rows take the null row; labels may be missing only if all rows are."""
        if cond.drop is not None and not self.null_class:
            raise ValueError("cond.drop was given, but the network has no null_class to drop to")
        if cond.label is not None:
            label = cond.label
            if cond.drop is not None:
                label = label.masked_fill(cond.drop, self.num_classes)
        elif cond.drop is not None and bool(cond.drop.all()):
            label = torch.full_like(cond.drop, self.num_classes, dtype=torch.int64)
        else:
            raise ValueError("cond.label is missing: this network is class-conditional")
        return self.embedding_table(label)
