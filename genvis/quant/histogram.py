"""A weighted histogram that any number of batches add up to, in any order, with the same result.

Bins are 2^e wide and lie evenly about 0. A wider range doubles the width: neighbours are summed in
pairs, so nothing is ever redistributed.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from genvis.quant.powers import TINY, ceil_log2

PLACES = 14
BINS = 2**PLACES


@dataclass(frozen=True)
class Histogram:
    """counts (BINS,) float64; bin i is [(i - BINS / 2) 2^e, (i + 1 - BINS / 2) 2^e)."""

    counts: Tensor
    exponent: int  # e
    low: float  # the exact extremes, widened to contain 0
    high: float

    @classmethod
    def of(cls, x: Tensor, weight: Tensor | None = None) -> Self:
        """Of the finite numbers x, of any shape, each counting once or `weight` (like x) times."""
        x = x.detach().float().flatten()
        if not x.isfinite().all():
            raise ValueError("numbers must be finite, there are NaN or infinite ones")
        low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
        amax = torch.tensor(max(-low, high, TINY))
        exponent = max(-126, int(ceil_log2(amax)) - (PLACES - 1))
        bins = (x * 2.0**-exponent).floor().long().clamp(-BINS // 2, BINS // 2 - 1) + BINS // 2
        weights = None if weight is None else weight.detach().double().flatten()
        counts = torch.bincount(bins, weights, minlength=BINS).double()
        return cls(counts, exponent, low, high)

    def merge(self, other: Self) -> Self:
        """Of the numbers of both."""
        exponent = max(self.exponent, other.exponent)
        counts = self._widened(exponent) + other._widened(exponent)
        low, high = min(self.low, other.low), max(self.high, other.high)
        return type(self)(counts, exponent, low, high)

    def centers(self) -> Tensor:
        """The middles of the bins (BINS,), float32."""
        places = torch.arange(BINS, device=self.counts.device) - BINS // 2
        return ((places + 0.5) * 2.0**self.exponent).float()

    def quantile(self, share: float) -> float:
        """The end of the first bin up to which a share of the weight lies, kept in [low, high]."""
        total = self.counts.cumsum(0)
        place = int(torch.searchsorted(total, share * total[-1]))
        end = (min(place, BINS - 1) + 1 - BINS // 2) * 2.0**self.exponent
        return min(max(end, self.low), self.high)

    def mirrored(self) -> Self:
        """Of the numbers with their signs changed."""
        return type(self)(self.counts.flip(0), self.exponent, -self.high, -self.low)

    def _widened(self, exponent: int) -> Tensor:
        counts = self.counts
        for _ in range(exponent - self.exponent):
            pairs = counts.unflatten(0, (-1, 2)).sum(1)
            counts = torch.nn.functional.pad(pairs, (BINS // 4, BINS // 4))
        return counts
