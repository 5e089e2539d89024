"""A number with its spread: distances over many draws, bootstrap intervals.

Letters: N images, n images in a draw.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from genvis.evaluation.extraction import Features
from genvis.evaluation.frechet import frechet_distance
from genvis.evaluation.statistics import Statistics, same_features
from genvis.random import HashKeys, permutation

NUMBERS = 2**22  # drawn at once
Group = tuple[Tensor, int]  # rows (n,) that belong together, how many of them a draw takes


@dataclass(frozen=True)
class Spread:
    """values (draws,): one distance per draw of `size` images from each side."""

    values: Tensor
    size: int

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def sd(self) -> float:
        """Between draws, divisor draws - 1."""
        return float(self.values.std())

    @property
    def standard_error(self) -> float:
        """Of the mean over draws; draws that share images are not independent, so it says how
        well these sets were measured, not how other sets would differ.
        """
        return self.sd / len(self.values) ** 0.5


@dataclass(frozen=True)
class Interval:
    mean: float
    low: float
    high: float


def frechet_over_draws(
    a: Features,
    b: Features,
    *,
    size: int | None = None,
    classes: tuple[Tensor, Tensor, Tensor] | None = None,
    draws: int = 20,
    seed: int = 0,
) -> Spread:
    """Frechet distance of `size` (default: the smaller set's) rows of a and b, drawn afresh without
    replacement `draws` times; a function of the sets, in their order, and the seed.

    classes = (labels of a (N,), of b (M,), counts (K,)): every draw has counts[k] rows of class k
    instead, without which chance in the labels is most of a small distance.
    """
    same_features(a.statistics(), b.statistics())
    if draws < 2:
        raise ValueError(f"draws must be at least 2 to have a spread, got {draws}")
    if classes is not None:
        if size is not None:
            raise ValueError("give size or classes, whose counts are the size; not both")
        (labels_a, labels_b, counts), size = classes, int(classes[2].sum())
        groups = _by_class(a, labels_a, counts), _by_class(b, labels_b, counts)
    else:
        size = min(len(a), len(b)) if size is None else size
        if not 2 <= size <= min(len(a), len(b)):
            raise ValueError(f"size must be in 2..{min(len(a), len(b))}, got {size}")
        groups = [(torch.arange(len(a)), size)], [(torch.arange(len(b)), size)]
    distances = [
        frechet_distance(_draw(a, groups[0], seed, k, 0), _draw(b, groups[1], seed, k, 1))
        for k in range(draws)
    ]
    return Spread(torch.tensor(distances, dtype=torch.float64), size)


def bootstrap(values: Tensor, *, level: float = 0.95, draws: int = 2000, seed: int = 0) -> Interval:
    """The mean of values (N,) with its percentile interval; paired differences go in as one list.

    Source: Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 13.
    """
    if values.ndim != 1 or len(values) < 2 or not values.isfinite().all():
        raise ValueError(f"values must be at least 2 finite numbers, got {tuple(values.shape)}")
    if not 0 < level < 1 or draws < 100:
        raise ValueError(f"need 0 < level < 1 and draws >= 100, got {level} and {draws}")
    x, n = values.double().cpu(), len(values)
    keys = HashKeys.of(seed, range(draws)).fold("bootstrap")
    few = max(1, NUMBERS // n)
    uniforms = (HashKeys(h).uniform((n,)) for h in keys.h.split(few))  # (few, N)
    means = torch.cat([x[(each * n).long()].mean(1) for each in uniforms])
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = means.quantile(tails).tolist()
    return Interval(float(x.mean()), low, high)


def _by_class(features: Features, labels: Tensor, counts: Tensor) -> list[Group]:
    """The rows of every class, and how many of them a draw takes."""
    if labels.shape != (len(features),):
        raise ValueError(f"labels must be ({len(features)},), got {tuple(labels.shape)}")
    groups = [((labels == k).nonzero()[:, 0], count) for k, count in enumerate(counts.tolist())]
    for k, (rows, count) in enumerate(groups):
        if len(rows) < count:
            raise ValueError(f"a draw needs {count} images of class {k}, there are {len(rows)}")
    return groups


def _draw(features: Features, groups: list[Group], *words: int) -> Statistics:
    picked = [
        rows[permutation(len(rows), *words, k)[:count].to(rows.device)]
        for k, (rows, count) in enumerate(groups)
    ]
    return Statistics.of(features.values[torch.cat(picked)], features.sha256)
