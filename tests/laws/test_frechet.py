"""Frechet distance and streaming statistics: closed forms and invariants.

Data are fixed, so errors are rounding alone; features are of order 1 unless a test says otherwise.
"""

import pytest
import torch
from torch import Tensor

from genvis.evaluation.frechet import (
    expected_floor,
    frechet_distance,
    frechet_from_features,
    frechet_from_moments,
    trace_sqrt,
)
from genvis.evaluation.statistics import Statistics
from genvis.random import HashKeys

D = 6


def rows(n: int, dim: int = D, seed: int = 0) -> Tensor:
    return HashKeys.of(seed, range(n)).normal((dim,)).double()


def mixed(n: int, seed: int, dim: int = D) -> Tensor:
    """Correlated features (n, dim) with unequal variances and a mean."""
    mix = rows(dim, dim, seed=100 + seed) + torch.eye(dim) * 2
    return rows(n, dim, seed) @ mix + rows(1, dim, seed=200 + seed)


def distance(a: Tensor, b: Tensor) -> float:
    return frechet_distance(Statistics.of(a), Statistics.of(b))


def total(*parts: Tensor) -> Statistics:
    found = Statistics.of(parts[0])
    for part in parts[1:]:
        found = found + Statistics.of(part)
    return found


@pytest.mark.parametrize("n", [4, 50])  # rank-deficient, full rank
def test_a_set_is_at_no_distance_from_itself(n: int) -> None:
    a = mixed(n, 1)
    traces = 2 * float(Statistics.of(a).covariance.trace())
    assert 0 <= distance(a, a) <= 1e-9 * traces
    assert 0 <= frechet_from_features(a, a) <= 1e-9 * traces


@pytest.mark.parametrize(("n", "m"), [(40, 60), (4, 60), (4, 5)])
def test_symmetry_and_gram_form(n: int, m: int) -> None:
    a, b = mixed(n, 1), mixed(m, 2)
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-12)
    assert frechet_from_features(a, b) == pytest.approx(distance(a, b), rel=1e-12)


def test_rotation_translation_and_scale() -> None:
    a, b = mixed(40, 1), mixed(60, 2)
    rotation = torch.linalg.qr(rows(D, seed=9)).Q
    shift = rows(1, seed=8) * 10
    assert distance(a @ rotation + shift, b @ rotation + shift) == pytest.approx(
        distance(a, b), rel=1e-11
    )
    assert distance(3 * a, 3 * b) == pytest.approx(9 * distance(a, b), rel=1e-12)


def test_at_least_the_distance_of_means() -> None:
    a, b = mixed(40, 1), mixed(60, 2)
    assert distance(a, b) > float((a.mean(0) - b.mean(0)).square().sum())
    moved = distance(a, a + torch.arange(D))
    assert moved == pytest.approx(sum(i**2 for i in range(D)), rel=1e-12)


def test_commuting_covariances() -> None:
    """|dm|^2 + sum (sqrt l - sqrt k)^2; zero eigenvalues and a single feature included."""
    values, others = torch.tensor([4.0, 1, 0, 9]), torch.tensor([1.0, 1, 4, 0])
    mean = torch.tensor([1.0, 0, 0, 2])
    found = frechet_from_moments(mean, values.diag(), torch.zeros(4), others.diag())
    assert found == pytest.approx(5 + 1 + 0 + 4 + 9, abs=1e-12)
    one = torch.ones(1)
    assert frechet_from_moments(one, one.diag() * 4, one * 3, one.diag() * 9) == pytest.approx(5)


def test_transport_map() -> None:
    """S2 = T S1 T with T positive definite: the root of the product has trace Tr(T S1)."""
    cov = Statistics.of(mixed(50, 1)).covariance
    factor = rows(D, seed=5)
    transport = factor @ factor.mT + torch.eye(D)
    found = trace_sqrt(cov, transport @ cov @ transport)
    assert float(found) == pytest.approx(float((transport @ cov).trace()), rel=1e-12)


def test_zero_eigenvalues_do_not_add_up() -> None:
    """300 features, 10 rows: a root of what rounding leaves of 290 zeros would show at 1e-7."""
    a, b = mixed(10, 1, dim=300), mixed(12, 2, dim=300)
    assert distance(a, b) == pytest.approx(frechet_from_features(a, b), rel=1e-12)


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
def test_same_as_clean_fid() -> None:
    """clean-fid 0.1.35 needs a SciPy whose sqrtm still takes `disp`."""
    fid = pytest.importorskip("cleanfid.fid")
    a, b = Statistics.of(mixed(40, 1)), Statistics.of(mixed(60, 2))
    try:
        theirs = fid.frechet_distance(
            a.mean.numpy(), a.covariance.numpy(), b.mean.numpy(), b.covariance.numpy()
        )
    except TypeError as error:
        pytest.skip(f"clean-fid does not work with this SciPy: {error}")
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-11)


@pytest.mark.parametrize("size", [1, 2, 7, 49, 50])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_merging_any_split(size: int, offset: float) -> None:
    x = mixed(50, 3) + offset
    whole, merged = Statistics.of(x), total(*x.split(size))
    assert merged.n == whole.n == 50
    torch.testing.assert_close(merged.mean, x.mean(0), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(merged.covariance, x.T.cov(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(whole.covariance, x.T.cov(), rtol=1e-10, atol=1e-10)


def test_merging_is_associative_and_takes_empty_batches() -> None:
    parts = [Statistics.of(mixed(n, n)) for n in (3, 20, 1)]
    empty = Statistics.of(torch.empty(0, D))
    left, right = (parts[0] + parts[1]) + parts[2], parts[0] + (parts[1] + parts[2])
    for found in (right, empty + left, left + empty, empty + empty + left):
        assert found.n == 24
        torch.testing.assert_close(found.mean, left.mean, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.m2, left.m2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 5, 64])
def test_a_large_offset_costs_no_digits(size: int) -> None:
    """A shift by 2^20 is exact on these values, so the covariance must be that without it; features
    without correlation have the covariances that are easiest to lose.
    """
    x = (rows(64, seed=4) * 2**10).round() / 2**16  # spread 2^-6, in steps of 2^-16
    found = total(*(x + 2.0**20).split(size))
    torch.testing.assert_close(found.covariance, x.T.cov(), rtol=1e-9, atol=0)


def test_moments_and_features_agree() -> None:
    a, b = Statistics.of(mixed(40, 1)), Statistics.of(mixed(60, 2))
    again = Statistics.of_moments(40, a.mean, a.covariance)
    assert frechet_distance(again, b) == pytest.approx(frechet_distance(a, b), rel=1e-12)
    assert frechet_from_features(mixed(40, 1).float(), mixed(60, 2).float()) == pytest.approx(
        frechet_distance(a, b), rel=1e-5
    )


def test_floor_of_equal_eigenvalues() -> None:
    """l (D + D^2/4 + D/4) (1/n1 + 1/n2) for D equal eigenvalues l; zeros add nothing."""
    cov = torch.diag(torch.tensor([2.0] * 5 + [0.0] * 3))
    assert expected_floor(cov, 100, 400) == pytest.approx(2 * (5 + 25 / 4 + 5 / 4) * 0.0125)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite(bad: float) -> None:
    x = rows(5)
    x[3, 2] = bad
    for call in (Statistics.of, lambda x: frechet_from_features(x, rows(4))):
        with pytest.raises(ValueError, match="1 of 5 rows"):
            call(x)
    cov = torch.eye(2)
    with pytest.raises(ValueError, match="finite"):
        frechet_from_moments(torch.tensor([0, bad]), cov, torch.zeros(2), cov)


def test_too_few_rows() -> None:
    one, many = Statistics.of(rows(1)), Statistics.of(rows(9))
    for a, b in ((one, many), (many, one)):
        with pytest.raises(ValueError, match="at least 2 rows, got 1"):
            frechet_distance(a, b)
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        frechet_from_features(rows(1), rows(9))
    with pytest.raises(ValueError, match="n >= 2"):
        expected_floor(torch.eye(2), 1, 50)


def test_sizes_that_do_not_fit() -> None:
    a, b = Statistics.of(rows(9)), Statistics.of(rows(9, dim=D + 1))
    with pytest.raises(ValueError, match="6 and 7 features"):
        frechet_distance(a, b)
    with pytest.raises(ValueError, match="6 and 7 features"):
        a + b
    with pytest.raises(ValueError, match="6 and 7 features"):
        frechet_from_features(rows(9), rows(9, dim=D + 1))
    with pytest.raises(ValueError, match="do not fit"):
        Statistics.of_moments(9, torch.zeros(3), torch.eye(2))
    for wrong in (torch.zeros(3), torch.zeros(3, 2, 1), torch.zeros(3, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"shape \(N, D\)"):
            Statistics.of(wrong)


def test_two_extractors_cannot_be_compared() -> None:
    a, b, plain = (Statistics.of(rows(9), by) for by in ("aa" * 32, "bb" * 32, None))
    for other in (b, plain):
        with pytest.raises(ValueError, match="different extractors"):
            frechet_distance(a, other)
        with pytest.raises(ValueError, match="different extractors"):
            a + other
    assert (a + a).extractor == a.extractor


def test_what_is_no_covariance() -> None:
    zero, good = torch.zeros(2), torch.eye(2)
    for wrong, why in (
        (torch.diag(torch.tensor([1.0, -0.1])), "eigenvalues from -0.1"),
        (-good, "eigenvalues from -1"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
    ):
        with pytest.raises(ValueError, match=why):
            frechet_from_moments(zero, wrong, zero, good)
