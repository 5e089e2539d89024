"""What every quantizer returns, how gradients pass it, and how much of a codebook is used.

Sources: van den Oord et al. 2017, "Neural Discrete Representation Learning" (straight-through);
Fifty et al. 2024, "Restructuring Vector Quantization with the Rotation Trick", section 4.
Letters: B rows, d width of a vector, K codes, m sub-codes of a token, N vectors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genvis.random import Keys


@dataclass(frozen=True)
class Quantized:
    """z (B, ..., d): codes that pass gradients on; indices (B, ...) or (B, ..., m) int64.

    loss (B,): its mean over rows is the loss of the batch.
    """

    z: Tensor
    indices: Tensor
    loss: Tensor
    logs: Mapping[str, Tensor] = field(default_factory=dict)


class Quantizer(Protocol):
    """A module; vectors come last. With keys it may sample its codes, without it is exact."""

    def __call__(self, f: Tensor, keys: Keys | None = None) -> Quantized: ...
    def codes(self, indices: Tensor) -> Tensor:
        """What a decoder gets for these indices: (B, ..., d)."""
        ...


class QuantizerConfig(Protocol):
    """num_codes counts the values of one index; a token may hold several."""

    @property
    def num_codes(self) -> int: ...
    @property
    def inputs(self) -> int:
        """The width of the vectors that go in."""
        ...

    @property
    def width(self) -> int:
        """The width of the codes that come out."""
        ...

    def build(self) -> nn.Module: ...


def straight_through(f: Tensor, q: Tensor) -> Tensor:
    """The value q with the gradient of f."""
    return f + (q - f).detach()


def rotated(f: Tensor, q: Tensor) -> Tensor:
    """The value q as a constant rotation and scaling of f, so that gradients turn with it."""
    u, v = (F.normalize(x.detach(), dim=-1) for x in (f, q))
    r = F.normalize(u + v, dim=-1)
    scale = (q.norm(dim=-1, keepdim=True) / f.norm(dim=-1, keepdim=True)).detach()
    return scale * (f - 2 * _dot(f, r) * r + 2 * _dot(f, u) * v)


def histogram(indices: Tensor, num_codes: int) -> Tensor:
    """How often each code occurs, (K,) int64; sub-codes are counted together."""
    return torch.bincount(indices.flatten(), minlength=num_codes)


def usage(counts: Tensor) -> Tensor:
    """The share of codes that occur."""
    return (counts > 0).double().mean()


def entropy(counts: Tensor, pseudo: float = 0.0) -> Tensor:
    """In nats, of the shares of counts (K,), each increased by `pseudo`; perplexity is its exp."""
    share = (counts.double() + pseudo) / (counts.double() + pseudo).sum()
    return -torch.special.xlogy(share, share).sum()


def statistics(indices: Tensor, num_codes: int) -> dict[str, Tensor]:
    counts = histogram(indices.detach(), num_codes)
    return {"usage": usage(counts), "perplexity": entropy(counts).exp()}


def row_mean(x: Tensor) -> Tensor:
    """(B, ...) -> (B,)."""
    return x.flatten(1).mean(1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)
