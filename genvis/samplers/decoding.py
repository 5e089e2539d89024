"""From logits to tokens: truncation, temperature, and draws that noise decides.

Sources: Tian et al. 2024, "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale
Prediction", released code (top-k before top-p; smooth); Chen et al. 2025, "Collaborative Decoding
Makes Visual Auto-Regressive Modeling Efficient", released code (temperature after truncation).
Letters: n tokens of a scale, V codes, k the scale, K scales, u uniforms in [0, 1], float64.
"""

from typing import TypeVar

import torch
from torch import Tensor

from genvis.config import config

T = TypeVar("T", int, float)


@config
class Decoding:
    """Every number holds for all scales, or is a list with one for each."""

    top_k: int | tuple[int, ...] = 0  # how many codes may be drawn, and ties; 0: all of them
    top_p: float | tuple[float, ...] = 1.0  # the share of probability that may be, after top_k
    temperature: float | tuple[float, ...] = 1.0  # of what is left
    # adds a soft mixture of codes instead of the drawn one: smoother pictures, never for metrics
    smooth: bool = False

    def __post_init__(self) -> None:
        for name in ("top_k", "top_p", "temperature"):
            if getattr(self, name) == ():
                raise ValueError(f"{name} must be a number or one for each scale, got none")
        if min(each(self.top_k)) < 0:
            raise ValueError(f"top_k must be at least 1, or 0 for all codes, got {self.top_k}")
        if not all(0 < p <= 1 for p in each(self.top_p)):
            raise ValueError(f"top_p must be in (0, 1], where 1 is off, got {self.top_p}")
        if not all(t > 0 for t in each(self.temperature)):
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    def check(self, scales: int) -> None:
        """ValueError where a list is not one value a scale."""
        for name in ("top_k", "top_p", "temperature"):
            if isinstance(given := getattr(self, name), tuple) and len(given) != scales:
                raise ValueError(f"{name} must have one value for each of {scales} scales: {given}")

    def random(self, k: int) -> bool:
        """Whether noise decides anything at scale k (ties apart)."""
        return at(self.top_k, k) != 1

    def truncate(self, logits: Tensor, k: int) -> Tensor:
        return truncate(logits, at(self.top_k, k), at(self.top_p, k))

    def draw(self, truncated: Tensor, u: Tensor, k: int) -> Tensor:
        """Codes (B, n) of scale k from its truncated logits (B, n, V) and u (B, n)."""
        return draw((truncated / at(self.temperature, k)).softmax(-1), u)


def each(given: T | tuple[T, ...]) -> tuple[T, ...]:
    return given if isinstance(given, tuple) else (given,)


def at(given: T | tuple[T, ...], k: int) -> T:
    return given[k] if isinstance(given, tuple) else given


def truncate(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits (..., V) with -inf for all but the `top_k` largest, and then for the unlikeliest codes
    that together hold at most 1 - `top_p`; the likeliest stays.
    """
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        rising, order = logits.sort(-1)
        out = rising.softmax(-1).cumsum(-1) <= 1 - top_p
        out[..., -1] = False
        logits = logits.masked_fill(out.scatter(-1, order, out), -torch.inf)
    return logits


def place(normal: Tensor) -> Tensor:
    """Where standard normals are in their distribution: u. In float32 every one above 5.4 would
    have the same.
    """
    return torch.special.ndtr(normal.double())


def draw(probabilities: Tensor, u: Tensor) -> Tensor:
    """The inverse of the distribution function: codes (...,) from probabilities (..., V), u (...,).

    Codes stand in the order of the codebook, whatever their probabilities: a small change of u
    changes few tokens, and a small change of the logits leaves the tokens of a u where they are. A
    code of probability 0 is never drawn, however sums round.
    """
    upto = probabilities.cumsum(-1, dtype=torch.float64)  # in float32 rare codes share one place
    total = upto[..., -1]  # float32 probabilities do not quite add up to 1
    u = torch.minimum(u * total, total.nextafter(torch.zeros_like(total)))  # u may be 1
    return torch.searchsorted(upto, u[..., None], right=True)[..., 0]


def soften(logits: Tensor, exponential: Tensor, share: float) -> Tensor:
    """Shares (..., V) of all codes by Gumbel softmax: hotter on coarse scales.

    exponential (..., V): draws of Exp(1); share: k / (K - 1).
    """
    temperature = max(0.27 * (1 - 0.95 * share), 0.005)
    return (((1 + share) * logits - exponential.log()) / temperature).softmax(-1)
