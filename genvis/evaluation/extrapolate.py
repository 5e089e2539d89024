"""FD-infinity: the Frechet distance that unlimited generated images would have.

FD_n is biased upward by about c / n, so FD of subsets of several sizes n is fitted by a line in 1/n
whose intercept is reported. Subsets smaller than a few times D bend the line. Only the generated
side is extrapolated: what the reference lacks in size stays in.
What the standard error covers: the scatter of the subsets about the line, given these N images. All
subsets share them, so it is blind to how N other images would differ: on Gaussian features (D 6 to
64, N 400 to 10,000) the nominal 95 % interval from it held the true distance in 55 to 80 % of runs.
For an interval that holds at its rate, extrapolate three or more disjoint sets (seed ranges) and
take Student's t over their values: 95 % measured with four. `measures.FrechetInfinity` joins the
error with the jackknife's over images. No bootstrap: drawing N of N with replacement adds the bias
a second time.
Source: Chong and Forsyth 2020, "Effectively unbiased FID and inception score and where to find
them", section 4 (random subsets in place of their quasi-random ones).
Letters: N images, D features, n images in a subset, K sizes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from genvis.evaluation.extraction import Features
from genvis.evaluation.frechet import frechet_distance
from genvis.evaluation.statistics import Statistics
from genvis.random import permutation


@dataclass(frozen=True)
class Extrapolation:
    """value: the intercept (may be slightly negative); standard_error: of the intercept, by least
    squares with K - 2 degrees of freedom; slope: c; sizes (K,) int64 and distances (K,) fitted.
    """

    value: float
    standard_error: float
    slope: float
    sizes: Tensor
    distances: Tensor


def frechet_infinity(
    features: Features,
    reference: Statistics,
    *,
    sizes: int = 15,
    smallest: int | None = None,
    seed: int = 0,
) -> Extrapolation:
    """Extrapolate from `sizes` subsets of features (N, D), drawn without replacement, with sizes
    evenly from `smallest` (default: min(5000, N // 10)) to N; a function of the rows in their
    order, and of the seed. ValueError for other extractors, sizes < 3, too few rows.
    """
    n = len(features)
    smallest = max(2, min(5000, n // 10)) if smallest is None else smallest
    if sizes < 3:
        raise ValueError(f"sizes must be at least 3 for a line with an error, got {sizes}")
    if n < sizes + 1:
        raise ValueError(f"{sizes} sizes need at least {sizes + 1} rows, got {n}")
    if not 2 <= smallest <= n - sizes + 1:
        raise ValueError(f"smallest must be in 2..{n - sizes + 1}, got {smallest}")
    steps = torch.linspace(smallest, n, sizes, dtype=torch.float64).round().long()
    distances = [
        frechet_distance(_subset(features, size, seed, i), reference)
        for i, size in enumerate(steps.tolist())
    ]
    return fit(steps, torch.tensor(distances, dtype=torch.float64))


def fit(sizes: Tensor, distances: Tensor) -> Extrapolation:
    """The least-squares line of distances (K,) against 1 / sizes (K,), not all equal; K >= 3."""
    if sizes.ndim != 1 or sizes.shape != distances.shape or len(sizes) < 3:
        raise ValueError(
            f"sizes and distances must be equal (K,) with K >= 3, got {tuple(sizes.shape)} and "
            f"{tuple(distances.shape)}"
        )
    if not distances.isfinite().all() or sizes.min() < 1 or sizes.min() == sizes.max():
        raise ValueError("distances must be finite, and sizes positive and not all equal")
    x, y = 1 / sizes.double(), distances.double()
    spread = (x - x.mean()).square().sum()
    slope = ((x - x.mean()) @ (y - y.mean())) / spread
    value = y.mean() - slope * x.mean()
    variance = (y - value - slope * x).square().sum() / (len(x) - 2)
    error = (variance * (1 / len(x) + x.mean().square() / spread)).sqrt()
    return Extrapolation(float(value), float(error), float(slope), sizes, distances)


def _subset(features: Features, size: int, seed: int, index: int) -> Statistics:
    rows = permutation(len(features), seed, index)[:size]
    return Statistics.of(features.values[rows.to(features.values.device)], features.sha256)
