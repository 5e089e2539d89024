"""Measures against what probability says of them.

Seeds are fixed, so nothing here is flaky; tolerances are stated standard errors (Z of them: a right
program would fail with probability 6e-5 a comparison under another seed).
"""

import pytest
import torch
from torch import Tensor

from genvis.evaluation.cmmd import gaussian_mmd2
from genvis.evaluation.extraction import Features
from genvis.evaluation.extrapolate import Extrapolation, frechet_infinity
from genvis.evaluation.frechet import frechet_from_moments
from genvis.evaluation.kid import kid, kid_subsets
from genvis.evaluation.manifold import manifold
from genvis.evaluation.similarity import ssim
from genvis.evaluation.statistics import Statistics
from genvis.random import HashKeys, permutation

Z = 4.0
SHA = "0" * 64


def draws(seed: int, times: int, n: int, dim: int) -> Tensor:
    """Standard normals (times, n, dim)."""
    return HashKeys.of(seed, range(times)).normal((n, dim)).double()


def mean_and_error(values: list[float]) -> tuple[float, float]:
    x = torch.tensor(values, dtype=torch.float64)
    return float(x.mean()), float(x.std()) / len(x) ** 0.5


def test_kid_of_two_halves() -> None:
    """Over random halves of one set the mean is 0 exactly; a biased form would have 2 gap / n."""
    x, n, times = draws(1, 1, 200, 8)[0], 100, 400
    orders = [permutation(2 * n, 5, i) for i in range(times)]
    mean, error = mean_and_error([kid(x[o[:n]], x[o[n:]]) for o in orders])
    assert abs(mean) < Z * error
    kernel = (x @ x.mT / 8 + 1).pow(3)
    gap = float(kernel.diagonal().mean() - kernel.mean())
    assert 2 * gap / n > 2 * Z * error  # so that the test could see it
    assert kid(x[:n], x[n:] + 0.5) > Z * error * times**0.5


def test_kid_is_unbiased_at_any_size() -> None:
    """N(0, I) against N(0, s^2 I) in D dimensions: 3 (1 - s^2)^2 / D, also from 6 and 9 rows."""
    dim, s = 4, 1.6
    a, b = draws(2, 1500, 6, dim), s * draws(3, 1500, 9, dim)
    mean, error = mean_and_error([kid(x, y) for x, y in zip(a, b, strict=True)])
    expected = 3 * (1 - s**2) ** 2 / dim
    assert abs(mean - expected) < Z * error
    assert error < 0.15 * expected


def test_subsets_average_to_all_pairs() -> None:
    a, b = draws(4, 1, 150, 8)[0], 0.9 * draws(5, 1, 120, 8)[0] + 0.2
    found = kid_subsets(a, b, subsets=400, size=30, seed=2)
    assert abs(found.mean - kid(a, b)) < Z * found.sd / 400**0.5


def test_bias_of_the_biased_distance() -> None:
    """Two samples of one law: (1 / N1 + 1 / N2) (1 - mean k), mean k in closed form."""
    dim, sigma, n1, n2 = 3, 2.0, 12, 20
    x = draws(6, 600, n1 + n2, dim)
    mean, error = mean_and_error([gaussian_mmd2(y[:n1], y[n1:], sigma=sigma) for y in x])
    kernel = (sigma**2 / (sigma**2 + 2)) ** (dim / 2)
    expected = (1 / n1 + 1 / n2) * (1 - kernel)
    assert abs(mean - expected) < Z * error
    assert error < 0.05 * expected


@pytest.mark.parametrize("k", [1, 4])
def test_density_and_coverage_of_one_law(k: int) -> None:
    """Neighbours are exchangeable, so both expectations hold for any continuous law."""
    n, m = 40, 25
    x = draws(7, 300, n + m, 5)
    x[..., 0] = x[..., 0].exp()
    found = [manifold(y[:n], y[n:], k=k) for y in x]
    missed = 1.0
    for i in range(1, k + 1):
        missed *= (n - i) / (n + m - i)
    expected = {"density": 1.0, "coverage": 1 - missed}
    for name, value in expected.items():
        mean, error = mean_and_error([getattr(each, name) for each in found])
        assert abs(mean - value) < Z * error
        assert error < 0.03


def test_precision_and_recall_tell_the_two_failures_apart() -> None:
    real = draws(8, 1, 400, 4)[0]
    other, noise = draws(9, 2, 400, 4)
    equal = manifold(real, other, k=3)
    narrow, wide = manifold(real, 0.4 * other, k=3), manifold(real, other + 2 * noise, k=3)
    assert narrow.precision > equal.precision > wide.precision + 0.2
    assert narrow.recall < equal.recall - 0.2
    assert wide.recall > narrow.recall
    assert narrow.coverage < equal.coverage > wide.coverage
    assert narrow.density > equal.density > wide.density


class Gaussians:
    """N(shift, scale^2) against N(0, I), D features: their distance is known."""

    def __init__(self, dim: int) -> None:
        self.scale, self.shift = torch.linspace(0.7, 1.3, dim).double(), 0.15
        zero, one = torch.zeros(dim).double(), torch.eye(dim).double()
        self.reference = Statistics.of_moments(10**9, zero, one, SHA)
        self.distance = frechet_from_moments(
            zero + self.shift, self.scale.square().diag(), zero, one
        )

    def found(self, seed: int, n: int) -> Extrapolation:
        x = draws(seed, 1, n, len(self.scale))[0] * self.scale + self.shift
        return frechet_infinity(Features(x, "gauss", SHA), self.reference, seed=seed)


def test_infinity_takes_the_bias_away() -> None:
    """D = 16, N = 1000, 60 sets: FD_N is off by more than 10 standard errors, FD-infinity by less
    than 3 % of that bias and Z errors; single values are nearer the truth too.
    """
    known = Gaussians(16)
    found = [known.found(100 + i, 1000) for i in range(60)]
    errors = [each.value - known.distance for each in found]
    plain = [float(each.distances[-1]) - known.distance for each in found]
    (mean, error), (bias, plain_error) = mean_and_error(errors), mean_and_error(plain)
    assert bias > 10 * plain_error
    assert abs(mean) < 0.03 * bias + Z * error
    assert sum(e * e for e in errors) < 0.5 * sum(e * e for e in plain)
    slope, slope_error = mean_and_error([each.slope / 1000 for each in found])
    assert abs(slope - bias) < 0.05 * bias + Z * (slope_error + plain_error)


def test_interval_over_disjoint_sets_covers() -> None:
    """D = 6, 4 disjoint sets of N = 400, 100 times: mean +- 3.182 sd / 2 (Student's t, 3 degrees)
    covers at 95 %; the fit's own error, blind to what the sets share, covers far less.
    """
    known, times = Gaussians(6), 100
    inside = alone = 0
    for i in range(times):
        found = [known.found(1000 + 4 * i + j, 400) for j in range(4)]
        mean, error = mean_and_error([each.value for each in found])
        inside += abs(mean - known.distance) < 3.182 * error
        alone += abs(found[0].value - known.distance) < 2.160 * found[0].standard_error
    assert abs(inside / times - 0.95) < Z * (0.95 * 0.05 / times) ** 0.5
    assert alone / times < 0.85


def test_similarity_falls_with_noise() -> None:
    keys = HashKeys.of(5, range(20))
    smooth = torch.nn.functional.interpolate(128 + 50 * keys.normal((3, 4, 4)), scale_factor=8)
    noise = keys.fold("noise").normal((3, 32, 32))
    clean = smooth.clamp(0, 255).to(torch.uint8)
    found = [
        ssim((clean + s * noise).round().clamp(0, 255).to(torch.uint8), clean).mean
        for s in (0, 2, 8, 32, 128)
    ]
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(1)
    assert found[-1] < 0.3
