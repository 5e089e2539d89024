"""Intervals of a Frechet distance cover the distance of infinitely many images at their rate.

Gaussian features whose distance is known; seeds are fixed, tolerances are Z standard errors.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from genvis.checkpoint import save_tensors
from genvis.evaluation.frechet import expected_floor, frechet_distance, frechet_from_moments
from genvis.evaluation.jackknife import (
    Jackknife,
    jackknife,
    jackknife_statistics,
    random_groups,
)
from genvis.evaluation.measures import KID, FrechetInfinity
from genvis.evaluation.observe import Seen
from genvis.evaluation.reference import Reference
from genvis.evaluation.spread import bootstrap
from genvis.evaluation.statistics import Statistics
from genvis.random import HashKeys

Z = 4.0
LEVEL = 0.95
REPLICATES, RATE_Z = 400, 3.1  # seeds are fixed: a right interval fails by chance once in 500 seeds


class Gaussians:
    """N(shift, scale^2) against N(0, I), D features."""

    def __init__(self, dim: int) -> None:
        self.scale, self.shift = torch.linspace(0.7, 1.3, dim).double(), 0.15
        zero, one = torch.zeros(dim).double(), torch.eye(dim).double()
        self.reference = Statistics.of_moments(10**9, zero, one, "0" * 64)
        self.distance = frechet_from_moments(
            zero + self.shift, self.scale.square().diag(), zero, one
        )

    def draw(self, seed: int, n: int) -> Tensor:
        noise = HashKeys.of(seed, range(n)).normal((len(self.scale),)).double()
        return noise * self.scale + self.shift

    def found(self, seed: int, n: int, groups: int = 10) -> Jackknife:
        x, own = self.draw(seed, n), random_groups(n, groups, seed)
        parts = [Statistics.of(x[own == g], "0" * 64) for g in range(groups)]
        return jackknife_statistics(parts, lambda each: frechet_distance(each, self.reference))


def bounds(times: int) -> tuple[float, float]:
    """Where a rate over so many replicates must lie: at R = 400, [0.916, 0.984]. An interval that
    covers 85 % ends up inside with probability 1e-4.
    """
    half = RATE_Z * (LEVEL * (1 - LEVEL) / times) ** 0.5
    return LEVEL - half, LEVEL + half


def rate(intervals: list[tuple[float, float]], truth: float) -> float:
    return sum(low <= truth <= high for low, high in intervals) / len(intervals)


@pytest.mark.parametrize(("dim", "n"), [(6, 400), (16, 160), (32, 640)])
def test_the_interval_covers_at_its_rate(dim: int, n: int) -> None:
    """D = 6, N = 400; D = 16, N = 160; D = 32, N = 640; R = 400 replicates each: at 95 %. The test
    can tell: the 85 % intervals of the same replicates are refused. About the plain value, which is
    biased, an interval of the same width covers far less at N = 10 D.
    """
    known, (least, most) = Gaussians(dim), bounds(REPLICATES)
    found = [known.found(3000 + i, n) for i in range(REPLICATES)]
    inside = rate([each.interval(LEVEL) for each in found], known.distance)
    assert least < inside < most
    assert rate([each.interval(0.85) for each in found], known.distance) < least
    moved = [[end + x.value - x.corrected for end in x.interval(LEVEL)] for x in found]
    naive = rate([(low, high) for low, high in moved], known.distance)
    assert naive < inside
    if n <= 10 * dim:
        assert naive < 0.5


def seen(folder: Path, x: Tensor) -> Seen:
    """Features as if they had been extracted."""
    save_tensors(folder / "part", {"features": x})
    return Seen((folder / "part",), len(x), "gauss", "0" * 64, "none")


def test_kids_interval_covers_at_its_rate(tmp_path: Path) -> None:
    """x ~ N(0, s^2 I) against fixed rows y, D = 4, N = 120 against 150, R = 400: the distance of
    infinitely many x is 1 + 3 s^4 / D + k - 2 mean (1 + 3 s^2 |y|^2 / D^2), k the mean kernel of
    two different y, and the value has no bias.
    """
    dim, n, scale = 4, 120, 1.2
    y = HashKeys.of(11, range(150)).normal((dim,)).double()
    kernel = (y @ y.mT / dim + 1).pow(3)
    within = (kernel.sum() - kernel.diagonal().sum()) / (150 * 149)
    across = 1 + 3 * scale**2 * y.square().sum(1).mean() / dim**2
    truth = float(1 + 3 * scale**4 / dim + within - 2 * across)
    real = Reference("y", "ab", 150, {}, {"features": lambda: y})
    keys = (HashKeys.of(9000 + i, range(n)) for i in range(REPLICATES))
    sets = (scale * each.normal((dim,)).double() for each in keys)
    found = [KID(subsets=0)(seen(tmp_path, x), real)[0] for x in sets]
    least, most = bounds(REPLICATES)
    assert least < rate([record.interval for record in found], truth) < most
    values = torch.tensor([record.value for record in found], dtype=torch.float64)
    assert abs(values.mean() - truth) < Z * values.std() / REPLICATES**0.5


@pytest.mark.parametrize(("dim", "n"), [(6, 400), (16, 160)])
def test_the_extrapolations_interval_covers_at_its_rate(tmp_path: Path, dim: int, n: int) -> None:
    """D = 6, N = 400; D = 16, N = 160; R = 200 replicates: at least at 95 %; it joins two errors
    that are not independent, so it may cover more.
    """
    known, times = Gaussians(dim), 200
    real = Reference("known", "ab", None, {"features": known.reference})
    found = [
        FrechetInfinity(sizes=6)(seen(tmp_path, known.draw(500 + i, n)), real)[0]
        for i in range(times)
    ]
    assert rate([record.interval for record in found], known.distance) > bounds(times)[0]
    halves = torch.tensor([r.interval[1] - r.value for r in found], dtype=torch.float64)
    spread = torch.tensor([r.value for r in found], dtype=torch.float64).std()
    assert halves.median() < 5 * spread  # nor is it so wide that it says nothing


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


def test_a_bootstrap_in_pieces_is_the_same() -> None:
    """Its draws do not depend on how many are held at once: memory for 50,000 scores is bounded."""
    x = HashKeys.of(2, range(5000)).normal((1,)).double()[:, 0]
    found = bootstrap(x, draws=1000, seed=3)  # 5,000,000 numbers, more than are held
    uniforms = HashKeys.of(3, range(1000)).fold("bootstrap").uniform((5000,))
    means = x[(uniforms * 5000).long()].mean(1)
    tails = torch.tensor([0.025, 0.975], dtype=torch.float64)
    assert [found.low, found.high] == pytest.approx(means.quantile(tails).tolist(), rel=1e-12)


def test_groups_are_even_and_random() -> None:
    own = random_groups(103, 10)
    assert sorted(own.bincount().tolist()) == [10] * 7 + [11] * 3
    classes = torch.arange(103) % 10
    assert all(len(classes[own == g].unique()) > 3 for g in range(10))  # not a class a group
    with pytest.raises(ValueError, match="at least 2 groups"):
        jackknife(1.0, [1.0])
