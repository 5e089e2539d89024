"""Kernel distance (KID): the unbiased squared MMD under a cubic kernel, all pairs or by subsets.

k(x, y) = (x.y / D + 1)^3. Unbiased at every N, so it may be negative, and below about 5,000 images
it is the measure to trust; it is invariant to rotation of both sets, not to translation or scale.
Source: Binkowski et al. 2018, "Demystifying MMD GANs", section 4; Gretton et al. 2012, "A kernel
two-sample test", lemma 6.
Letters: N1, N2 rows, D features, S subsets of n rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from genvis.evaluation.pairs import check_pair
from genvis.random import permutation


@dataclass(frozen=True)
class SubsetKid:
    """values (S,) float64: one distance per pair of subsets of `size` rows."""

    values: Tensor
    size: int

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def sd(self) -> float:
        """Between subsets, divisor S, as published; subsets share rows, so sd / sqrt(S) is not the
        standard error of the mean.
        """
        return float(self.values.std(correction=0))


def kid(a: Tensor, b: Tensor, chunk: int = 1024) -> float:
    """The distance of features (N1, D) and (N2, D) over all pairs, N1 != N2 allowed; in float64,
    `chunk` rows at a time. ValueError for fewer than 2 rows, unequal D, NaN.
    """
    a, b = check_pair(a, b, 2, chunk, "an unbiased kernel distance")
    cross = _kernel_sum(a, b, chunk) / (len(a) * len(b))
    return float(_mean_of_others(a, chunk) + _mean_of_others(b, chunk) - 2 * cross)


def kid_subsets(
    a: Tensor, b: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> SubsetKid:
    """The published convention: `subsets` times, `size` rows of each set, drawn without replacement
    as a function of the seed and the order of the rows. ValueError if a set has fewer.
    """
    check_pair(a, b, 2, 1, "a kernel distance by subsets")
    if not 2 <= size <= min(len(a), len(b)):
        raise ValueError(f"size must be in 2..{min(len(a), len(b))}, the smaller set, got {size}")
    if subsets < 2:
        raise ValueError(f"subsets must be at least 2 to have a spread, got {subsets}")
    rows = [
        torch.stack([permutation(len(x), seed, k, side)[:size] for k in range(subsets)])
        for side, x in enumerate((a, b))
    ]
    return kid_of_rows(a, b, rows[0], rows[1])


def kid_of_rows(a: Tensor, b: Tensor, rows_a: Tensor, rows_b: Tensor) -> SubsetKid:
    """The same over given subsets: rows_a and rows_b (S, n) int64 number the rows of a and b."""
    for name, rows, n in (("rows_a", rows_a, len(a)), ("rows_b", rows_b, len(b))):
        if rows.ndim != 2 or rows.dtype != torch.int64 or not rows.numel():
            raise ValueError(f"{name} must be (S, n) int64, got {tuple(rows.shape)} {rows.dtype}")
        if rows.min() < 0 or rows.max() >= n:
            raise ValueError(f"{name} must number rows 0..{n - 1}, got {rows.min()}..{rows.max()}")
    if rows_a.shape != rows_b.shape:
        raise ValueError(
            f"rows_a and rows_b must be equal (S, n), got {tuple(rows_a.shape)} and "
            f"{tuple(rows_b.shape)}"
        )
    pairs = zip(rows_a.to(a.device), rows_b.to(b.device), strict=True)
    values = [kid(a[i], b[j]) for i, j in pairs]
    return SubsetKid(torch.tensor(values, dtype=torch.float64), rows_a.shape[1])


def _mean_of_others(x: Tensor, chunk: int) -> Tensor:
    """The mean kernel of two different rows."""
    itself = (x.square().sum(1) / x.shape[1] + 1).pow(3).sum()
    return (_kernel_sum(x, x, chunk) - itself) / (len(x) * (len(x) - 1))


def _kernel_sum(a: Tensor, b: Tensor, chunk: int) -> Tensor:
    d = a.shape[1]
    return torch.stack([(rows @ b.mT / d + 1).pow(3).sum() for rows in a.split(chunk)]).sum()
