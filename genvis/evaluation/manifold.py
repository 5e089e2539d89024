"""Improved precision and recall, density and coverage, by balls around k-th nearest neighbours.

A set's manifold is the union of balls, one per row, that reach the row's k-th nearest neighbour in
its own set. Distances are exact: a matrix product in float64 decides the clear cases, and whatever
is within its error bound is decided again from the differences, so that ties are ties.
Source: Kynkaanniemi et al. 2019, "Improved precision and recall metric for assessing generative
models", section 3; Naeem et al. 2020, "Reliable fidelity and diversity metrics for generative
models", section 2.
Letters: N real rows, M generated ones, D features, k neighbours, P pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from genvis.evaluation.pairs import check_pair

PAIRS = 2**24  # numbers in memory while pairs are compared by differences


@dataclass(frozen=True)
class Manifold:
    """precision: share of generated rows in the real manifold; recall: the converse; density: the
    mean number of real balls around a generated row, over k (may exceed 1); coverage: share of real
    balls with a generated row inside. On equal distributions density is 1 on average, and coverage
    1 - prod_i (N - i) / (N + M - i) over i = 1..k; precision and recall depend on the data.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(
    real: Tensor, fake: Tensor, *, k: int, inclusive: bool = True, chunk: int = 512
) -> Manifold:
    """The four values for features (N, D) and (M, D), on their device, `chunk` rows at a time: near
    8 (N + M) D + 80 chunk max(N, M) bytes, 4 GB at 50,000 x 2,048.

    k: 3 in the ADM evaluator, 5 in Naeem et al.; inclusive: whether a row on the surface is inside
    (true in the original metric, ADM and torch-fidelity; false in prdc): seen only where distances
    tie, as in copies of training images. ValueError for fewer than k + 1 rows, unequal D, NaN.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1 neighbour, got {k}")
    real, fake = check_pair(real, fake, k + 1, chunk, f"a {k}-th nearest neighbour other than self")
    near_real, near_fake = (_kth_squared(x, k, chunk) for x in (real, fake))  # (N,) and (M,)
    lengths = _lengths(fake, chunk)
    covered = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    balls = recalled = reached = 0
    for start in range(0, len(real), chunk):
        rows = real[start : start + chunk]
        product, bound = _squared(rows, fake, lengths)
        radius = near_real[start : start + chunk, None]
        in_real = _inside(product, bound, radius, rows, fake, inclusive)  # (chunk, M)
        in_fake = _inside(product, bound, near_fake, rows, fake, inclusive)
        covered |= in_real.any(0)
        balls += int(in_real.sum())
        reached += int(in_real.any(1).sum())
        recalled += int(in_fake.any(1).sum())
    n, m = len(real), len(fake)
    return Manifold(int(covered.sum()) / m, recalled / n, balls / (k * m), reached / n)


def _kth_squared(x: Tensor, k: int, chunk: int) -> Tensor:
    """Squared distance of every row to its k-th nearest other row, (N,); copies count as others."""
    found, lengths = [], _lengths(x, chunk)
    for start in range(0, len(x), chunk):
        rows = x[start : start + chunk]
        product, bound = _squared(rows, x, lengths)
        own = torch.arange(len(rows), device=x.device)
        product[own, own + start] = torch.inf
        kth = product.topk(k, largest=False).values[:, -1:]  # ten times faster than kthvalue
        # the true k-th is within its bound of this one, so only such rows can be it
        unsure = (product - kth).abs() <= 2 * bound.amax(1, keepdim=True)
        product[unsure] = _by_differences(rows, x, unsure)
        found.append(product.topk(k, largest=False).values[:, -1])
    return torch.cat(found)


def _inside(
    product: Tensor, bound: Tensor, radius: Tensor, rows: Tensor, x: Tensor, inclusive: bool
) -> Tensor:
    inside = product < radius
    unsure = (product - radius).abs() <= bound
    exact, limit = _by_differences(rows, x, unsure), radius.expand_as(unsure)[unsure]
    inside[unsure] = exact <= limit if inclusive else exact < limit
    return inside


def _squared(a: Tensor, b: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
    """|a|^2 + |b|^2 - 2 a.b for all pairs, and how far rounding can take it from the sum of squared
    differences (Higham 2002, "Accuracy and stability of numerical algorithms", section 3.1).
    """
    lengths = a.square().sum(1)[:, None] + lengths_b
    bound = lengths * (2 * (a.shape[1] + 8) * torch.finfo(a.dtype).eps)
    return torch.addmm(lengths, a, b.mT, alpha=-2), bound


def _lengths(x: Tensor, chunk: int) -> Tensor:
    return torch.cat([rows.square().sum(1) for rows in x.split(chunk)])  # no second copy of x


def _by_differences(a: Tensor, b: Tensor, wanted: Tensor) -> Tensor:
    """sum (a_i - b_j)^2 of the wanted pairs (i, j), (P,): symmetric, and 0 for copies."""
    pairs = wanted.nonzero().split(max(1, PAIRS // a.shape[1]))
    parts = [(a[p[:, 0]] - b[p[:, 1]]).square().sum(1) for p in pairs]
    return torch.cat(parts) if parts else a.new_empty(0)
