"""Intervals of a Frechet distance cover the distance of infinitely many images at their rate.

Gaussian features whose distance is known; seeds are fixed, tolerances are Z standard errors.
"""

import pytest
import torch

from genvis.evaluation.frechet import expected_floor, frechet_distance, frechet_from_moments
from genvis.evaluation.jackknife import (
    Jackknife,
    jackknife,
    jackknife_statistics,
    random_groups,
)
from genvis.evaluation.statistics import Statistics
from genvis.random import HashKeys

Z = 4.0
LEVEL = 0.95


class Gaussians:
    """N(shift, scale^2) against N(0, I), D features."""

    def __init__(self, dim: int) -> None:
        self.scale, self.shift = torch.linspace(0.7, 1.3, dim).double(), 0.15
        zero, one = torch.zeros(dim).double(), torch.eye(dim).double()
        self.reference = Statistics.of_moments(10**9, zero, one)
        self.distance = frechet_from_moments(
            zero + self.shift, self.scale.square().diag(), zero, one
        )

    def found(self, seed: int, n: int, groups: int = 10) -> Jackknife:
        x = HashKeys.of(seed, range(n)).normal((len(self.scale),)).double()
        x, own = x * self.scale + self.shift, random_groups(n, groups, seed)
        parts = [Statistics.of(x[own == g]) for g in range(groups)]
        return jackknife_statistics(parts, lambda each: frechet_distance(each, self.reference))


@pytest.mark.parametrize(("dim", "n", "times"), [(6, 400, 200), (16, 160, 150), (32, 640, 60)])
def test_the_interval_covers_at_its_rate(dim: int, n: int, times: int) -> None:
    """D = 6, N = 400, 200 replicates; D = 16, N = 160, 150; D = 32, N = 640, 60: at 95 %. About the
    plain value, which is biased, an interval of the same width covers far less at N = 10 D.
    """
    known = Gaussians(dim)
    found = [known.found(3000 + i, n) for i in range(times)]
    inside = sum(a <= known.distance <= b for a, b in (each.interval(LEVEL) for each in found))
    assert abs(inside / times - LEVEL) < Z * (LEVEL * (1 - LEVEL) / times) ** 0.5
    halves = [each.interval(LEVEL)[1] - each.corrected for each in found]
    naive = sum(abs(x.value - known.distance) < h for x, h in zip(found, halves, strict=True))
    assert naive < inside
    if n <= 10 * dim:
        assert naive / times < 0.5


def test_the_bias_is_what_is_expected_and_is_taken_away() -> None:
    """D = 16, N = 640, 100 replicates of one law against itself: the mean is the expected floor;
    the corrected mean is 0.
    """
    dim, n, times = 16, 640, 100
    one = torch.eye(dim).double()
    reference = Statistics.of_moments(10**9, torch.zeros(dim).double(), one)
    values, corrected = [], []
    for i in range(times):
        x = HashKeys.of(7000 + i, range(n)).normal((dim,)).double()
        parts = [Statistics.of(x[random_groups(n, 10, i) == g]) for g in range(10)]
        found = jackknife_statistics(parts, lambda each: frechet_distance(each, reference))
        values.append(found.value)
        corrected.append(found.corrected)
    plain, free = torch.tensor(values), torch.tensor(corrected)
    floor = expected_floor(one, n, None)
    assert abs(plain.mean() - floor) < Z * plain.std() / times**0.5 + 0.04 * floor
    assert abs(free.mean()) < Z * free.std() / times**0.5 + 0.04 * floor
    assert floor > 20 * plain.std() / times**0.5  # so that a bias would be seen


def test_a_mean_has_its_usual_interval() -> None:
    """Pseudo-values of a mean are the groups' means: Student's interval, exactly."""
    x = HashKeys.of(1, range(40)).normal((1,)).double()[:, 0]
    own = random_groups(40, 8)
    means = torch.stack([x[own == g].mean() for g in range(8)])
    found = jackknife(float(x.mean()), [float(x[own != g].mean()) for g in range(8)])
    assert found.corrected == pytest.approx(float(x.mean()))
    assert found.error == pytest.approx(float(means.std()) / 8**0.5)
    low, high = found.interval()
    assert high - found.corrected == pytest.approx(2.3646 * found.error, rel=1e-4)
    assert low + high == pytest.approx(2 * found.corrected)


def test_groups_are_even_and_random() -> None:
    own = random_groups(103, 10)
    assert sorted(own.bincount().tolist()) == [10] * 7 + [11] * 3
    classes = torch.arange(103) % 10
    assert all(len(classes[own == g].unique()) > 3 for g in range(10))  # not a class a group
    with pytest.raises(ValueError, match="at least 2 groups"):
        jackknife(1.0, [1.0])
