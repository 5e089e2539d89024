"""Measures on features, logits and paired images: closed forms, invariances, every bad input.

Data are fixed, so errors are rounding alone; features are of order 1 unless a test says otherwise.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from genvis.evaluation import inception_score
from genvis.evaluation.cmmd import cmmd, gaussian_mmd2
from genvis.evaluation.extraction import Features
from genvis.evaluation.extrapolate import fit, frechet_infinity
from genvis.evaluation.frechet import frechet_distance
from genvis.evaluation.kid import SubsetKid, kid, kid_of_rows, kid_subsets
from genvis.evaluation.manifold import Manifold, manifold
from genvis.evaluation.similarity import ssim
from genvis.evaluation.statistics import Statistics
from genvis.random import HashKeys, permutation

D = 6
SHA = "3fa9c1" + "0" * 58
Measure = Callable[..., Any]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("evaluation opened a connection")

    monkeypatch.setattr("socket.socket.connect", refuse)


def rows(n: int, seed: int = 0, dim: int = D) -> Tensor:
    return HashKeys.of(seed, range(n)).normal((dim,)).double()


def pair(n: int = 60, m: int = 45) -> tuple[Tensor, Tensor]:
    """Overlapping sets of unequal spread, (n, D) and (m, D)."""
    return rows(n, 1), 0.8 * rows(m, 2) + 0.3


def turned(x: Tensor) -> Tensor:
    return x @ torch.linalg.qr(rows(D, 9)).Q


def shuffled(x: Tensor) -> Tensor:
    return x[permutation(len(x), 7)]


def images(n: int, seed: int = 0, height: int = 13, width: int = 17) -> Tensor:
    uniform = HashKeys.of(seed, range(n)).uniform((3, height, width))
    return (256 * uniform).to(torch.uint8)


def four(found: Manifold) -> list[float]:
    return [found.precision, found.recall, found.density, found.coverage]


def by_hand(real: Tensor, fake: Tensor, k: int, inclusive: bool) -> list[float]:
    """The definitions, over all pairs at once."""

    def squared(a: Tensor, b: Tensor) -> Tensor:
        return (a[:, None] - b[None]).square().sum(-1)

    def radii(x: Tensor) -> Tensor:
        return squared(x, x).fill_diagonal_(torch.inf).sort(1).values[:, k - 1]

    distance, real_radii, fake_radii = squared(real, fake), radii(real), radii(fake)
    inside = torch.le if inclusive else torch.lt
    in_real, in_fake = inside(distance, real_radii[:, None]), inside(distance, fake_radii)
    shares = [in_real.any(0), in_fake.any(1), in_real.sum(0).double() / k, in_real.any(1)]
    return [float(share.double().mean()) for share in shares]


# kernels


def test_kid_is_its_definition() -> None:
    a, b = pair(5, 4)

    def kernel(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / D + 1) ** 3

    own = [
        sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
        for x, n in ((a, 5), (b, 4))
    ]
    cross = sum(kernel(x, y) for x in a for y in b) / 20
    assert kid(a, b) == pytest.approx(own[0] + own[1] - 2 * cross, rel=1e-12)


def test_kid_of_a_set_with_itself_is_below_zero() -> None:
    """Mean over different rows minus mean over all rows, twice: the bias it does not have."""
    a = rows(30)
    kernel = (a @ a.mT / D + 1).pow(3)
    others = (kernel.sum() - kernel.trace()) / (30 * 29)
    assert kid(a, a) == pytest.approx(2 * float(others - kernel.mean()), rel=1e-11)
    assert kid(a, a) < 0


def test_subsets_of_everything_are_everything() -> None:
    a, b = pair(30, 30)
    found = kid_subsets(a, b, subsets=3, size=30)
    assert found.values.tolist() == pytest.approx([kid(a, b)] * 3, rel=1e-11)
    assert found.sd < 1e-12


def test_subsets_are_drawn_without_replacement_by_seed() -> None:
    a, b = pair()
    found = kid_subsets(a, b, subsets=5, size=20, seed=3)
    assert len(found.values.unique()) == 5
    assert torch.equal(found.values, kid_subsets(a, b, subsets=5, size=20, seed=3).values)
    assert not torch.equal(found.values, kid_subsets(a, b, subsets=5, size=20, seed=4).values)
    again = SubsetKid(torch.tensor([1.0, 2.0, 3.0, 6.0]), 20)
    assert (again.mean, again.sd) == (3.0, pytest.approx(math.sqrt(14 / 4)))
    picked = torch.tensor([[2, 0, 5], [1, 4, 3]])
    values = kid_of_rows(a, b, picked, picked + 1).values
    assert values[1] == pytest.approx(kid(a[[1, 4, 3]], b[[2, 5, 4]]), rel=1e-12)


def test_gaussian_mmd_is_its_definition() -> None:
    a, b = pair(5, 4)

    def mean(x: Tensor, y: Tensor, sigma: float) -> float:
        pairs = [math.exp(-float((p - q).square().sum()) / (2 * sigma**2)) for p in x for q in y]
        return sum(pairs) / len(pairs)

    wanted = mean(a, a, 1.5) + mean(b, b, 1.5) - 2 * mean(a, b, 1.5)
    assert gaussian_mmd2(a, b, sigma=1.5) == pytest.approx(wanted, rel=1e-11)
    assert gaussian_mmd2(a, a, sigma=1.5) == 0


def test_cmmd_of_two_directions() -> None:
    """One direction against another at angle t: 1000 (2 - 2 exp(-(1 - cos t) / sigma^2))."""
    a = torch.tensor([[3.0, 0], [0.5, 0]])
    b = torch.tensor([[0.0, 7], [0, 2], [0, 1]])
    assert cmmd(a, b) == pytest.approx(1000 * 2 * -math.expm1(-1 / 100), rel=1e-12)
    assert cmmd(a, b, sigma=0.5) == pytest.approx(1000 * 2 * -math.expm1(-4), rel=1e-12)
    x, y = pair()
    assert cmmd(x, y) == pytest.approx(cmmd(x * rows(60, 5, 1).exp(), 3 * y), rel=1e-9)


# manifolds


@pytest.mark.parametrize("inclusive", [True, False])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_manifold_is_its_definition(k: int, inclusive: bool) -> None:
    grid = [(2 * x).round() for x in pair()]  # integers: ties and copies, exact by hand too
    for real, fake in (pair(), (grid[0], grid[1]), (grid[0][:, :1], grid[1][:, :1])):
        wanted = by_hand(real, fake, k, inclusive)
        for chunk in (1, 7, 512):
            found = manifold(real, fake, k=k, inclusive=inclusive, chunk=chunk)
            assert four(found) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_ties_far_from_the_origin_are_ties(offset: float) -> None:
    """At 1e6 a product of float64 is wrong by 1e-4: only differences can tell that 1 = 1."""
    real = torch.arange(6.0).double()[:, None] + offset
    fake = torch.tensor([-1.0, 0.5, 6, 7, 9]).double()[:, None] + offset
    assert four(manifold(real, fake, k=1)) == by_hand(real, fake, 1, True)
    assert four(manifold(real, fake, k=1, inclusive=False)) == by_hand(real, fake, 1, False)
    assert by_hand(real, fake, 1, True) != by_hand(real, fake, 1, False)


@pytest.mark.parametrize("inclusive", [True, False])
def test_neighbours_far_from_the_origin_are_in_order(inclusive: bool) -> None:
    """Squared distances near 1e-6 at 1e5, where a product is wrong by as much."""
    real, fake = (1e-3 * x + 1e5 for x in pair())
    for k in (1, 3):
        found = four(manifold(real, fake, k=k, inclusive=inclusive, chunk=16))
        assert found == pytest.approx(by_hand(real, fake, k, inclusive), abs=1e-12)


def test_copies_have_balls_of_no_size() -> None:
    """Turned by irrational angles, where a product would leave 1e-16 of distance between copies."""
    real = turned(rows(20)).repeat(2, 1)
    fake = torch.cat([real[:10], real[:10]])
    assert four(manifold(real, fake, k=1)) == [1, 0.5, 2, 0.5]
    assert four(manifold(real, fake, k=1, inclusive=False)) == [0, 0, 0, 0]


def test_identical_and_disjoint_sets() -> None:
    a = rows(50)
    same = manifold(a, a, k=3)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert same.density == pytest.approx((50 + 3 * 50) / (3 * 50))  # itself, and k neighbours
    assert four(manifold(a, a + 100, k=3)) == [0, 0, 0, 0]
    lost = manifold(a, a[:1].repeat(50, 1), k=3)  # a generator that knows one image
    assert (lost.precision, lost.recall) == (1, 1 / 50)
    assert lost.coverage < 0.3
    swapped = manifold(*pair()[::-1], k=3)
    assert (swapped.recall, swapped.precision) == tuple(four(manifold(*pair(), k=3))[:2])


# invariances of all of them


MEASURES: dict[str, Measure] = {
    "kid": kid,
    "cmmd": cmmd,
    "gaussian": lambda a, b, **more: gaussian_mmd2(a, b, sigma=2.0, **more),
    "manifold": lambda a, b, **more: four(manifold(a, b, k=3, **more)),
}


@pytest.mark.parametrize("name", MEASURES)
def test_neither_order_nor_chunks_matter(name: str) -> None:
    measure, (a, b) = MEASURES[name], pair()
    whole = pytest.approx(measure(a, b), rel=1e-10)
    assert measure(shuffled(a), shuffled(b)) == whole
    for chunk in (1, 7, 45, 60):
        assert measure(a, b, chunk=chunk) == whole


@pytest.mark.parametrize("name", ["kid", "cmmd", "gaussian"])
def test_symmetry(name: str) -> None:
    measure, (a, b) = MEASURES[name], pair()
    assert measure(b, a) == pytest.approx(measure(a, b), rel=1e-10)


@pytest.mark.parametrize("name", MEASURES)
def test_rotation_and_where_it_holds_translation(name: str) -> None:
    measure, (a, b) = MEASURES[name], pair()
    same = pytest.approx(measure(a, b), rel=1e-9)
    assert measure(turned(a), turned(b)) == same
    moved = measure(a + 2, b + 2)
    if name in ("gaussian", "manifold"):
        assert moved == same
    else:
        assert moved != pytest.approx(measure(a, b), rel=0.1)  # they see where the origin is
    if name == "manifold":
        assert measure(3 * a, 3 * b) == same


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: (a, b[:, 1:]), f"{D} and {D - 1} features cannot be compared"),
        (lambda a, b: (a[:1], b), "at least . rows in each set, got 1"),
        (lambda a, b: (a, b[:0]), "at least . rows in each set, got 0"),
        (lambda a, b: (a, b.clone().fill_(math.nan)), "45 of 45 rows hold NaN or inf"),
        (lambda a, b: (a / 0, b), "60 of 60 rows hold NaN or inf"),
        (lambda a, b: (a.long(), b), r"floating point of shape \(N, D\)"),
        (lambda a, b: (a[None], b), r"floating point of shape \(N, D\)"),
    ],
)
def test_features_that_do_not_fit(name: str, change: Measure, message: str) -> None:
    a, b = change(*pair())
    with pytest.raises(ValueError, match=message):
        MEASURES[name](a, b)
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        MEASURES[name](*pair(), chunk=0)


def test_settings_that_do_not_fit() -> None:
    a, b = pair()
    with pytest.raises(ValueError, match="k must be at least 1"):
        manifold(a, b, k=0)
    with pytest.raises(ValueError, match="46 rows in each set, got 45"):
        manifold(a, b, k=45)
    assert manifold(a, b, k=44).precision == 1
    with pytest.raises(ValueError, match="1 of 60 rows are zero"):
        cmmd(a * (torch.arange(60) != 7)[:, None], b)
    for sigma in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="sigma must be positive"):
            cmmd(a, b, sigma=sigma)
    for size in (1, 46):
        with pytest.raises(ValueError, match=r"size must be in 2\.\.45"):
            kid_subsets(a, b, size=size)
    with pytest.raises(ValueError, match="subsets must be at least 2"):
        kid_subsets(a, b, size=9, subsets=1)
    some = torch.arange(6).view(2, 3)
    with pytest.raises(ValueError, match=r"rows_b must be \(S, n\) int64"):
        kid_of_rows(a, b, some, some.double())
    with pytest.raises(ValueError, match=r"rows_b must number rows 0\.\.44, got 40\.\.45"):
        kid_of_rows(a, b, some, some + 40)
    with pytest.raises(ValueError, match="must be equal"):
        kid_of_rows(a, b, some, some[:1])


# Inception Score


def scores(logits: Tensor) -> list[float]:
    return [
        inception_score.whole(logits),
        inception_score.splits(logits, 4).mean,
        inception_score.blocks(logits, len(logits) // 4).mean,
    ]


@pytest.mark.parametrize("sure", [60.0, 1e4])  # at 1e4 every other probability underflows to 0
def test_certain_and_even_predictions_score_the_classes(sure: float) -> None:
    logits = sure * torch.eye(5).repeat(8, 1)
    assert scores(logits) == pytest.approx([5, 5, 5], rel=1e-12)
    assert scores(logits[:1].repeat(40, 1)) == pytest.approx([1, 1, 1], rel=1e-12)
    assert scores(rows(1).repeat(40, 1) + rows(40, 3, 1)) == pytest.approx([1, 1, 1], rel=1e-12)


def test_score_of_two_classes() -> None:
    """Predictions (p, 1 - p) and (1 - p, p): log 2 minus the entropy of p."""
    p = 0.9
    logits = torch.tensor([[p, 1 - p], [1 - p, p]], dtype=torch.float64).log()
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert inception_score.whole(logits) == pytest.approx(2 * math.exp(-entropy), rel=1e-12)


def test_score_conventions() -> None:
    logits = 2 * rows(25)
    parts = [inception_score.whole(part) for part in logits.split(10)]  # 10, 10, 5: equal weights
    found = inception_score.blocks(logits, 10)
    assert found.values.tolist() == pytest.approx(parts, rel=1e-12)
    assert found.mean == pytest.approx(sum(parts) / 3)
    assert found.sd == pytest.approx(math.sqrt(sum((x - found.mean) ** 2 for x in parts) / 3))
    cuts = [0, 6, 12, 18, 25]
    parts = [inception_score.whole(logits[i:j]) for i, j in pairwise(cuts)]
    assert inception_score.splits(logits, 4).values.tolist() == pytest.approx(parts, rel=1e-12)
    order = inception_score.legacy_order(25)
    assert torch.equal(
        inception_score.splits(logits, 4, order).values,
        inception_score.splits(logits[order], 4).values,
    )
    assert inception_score.legacy_order(8, 2020).sort().values.tolist() == list(range(8))
    assert not torch.equal(inception_score.legacy_order(8, 1), inception_score.legacy_order(8, 2))


def test_only_the_scores_in_groups_see_the_order() -> None:
    logits = 2 * rows(40)
    whole, groups, adm = scores(logits)
    again = scores(shuffled(logits))
    assert again[0] == pytest.approx(whole, rel=1e-12)
    assert again[1] != pytest.approx(groups, rel=1e-3)
    assert again[2] != pytest.approx(adm, rel=1e-3)
    assert scores(logits + rows(40, 3, 1)) == pytest.approx([whole, groups, adm], rel=1e-12)


@pytest.mark.parametrize("score", [inception_score.whole, inception_score.splits])
def test_logits_that_do_not_fit(score: Measure) -> None:
    with pytest.raises(ValueError, match="at least 2 rows of logits, got 1"):
        score(rows(1))
    with pytest.raises(ValueError, match="C >= 2"):
        score(rows(9, 0, 1))
    with pytest.raises(ValueError, match="floating point"):
        score(rows(9).long())
    with pytest.raises(ValueError, match="9 of 9 rows hold NaN or inf"):
        score(rows(9).fill_(-math.inf))


def test_groups_that_do_not_fit() -> None:
    for splits in (0, 10):
        with pytest.raises(ValueError, match=r"splits must be in 1\.\.9"):
            inception_score.splits(rows(9), splits)
    for order in (torch.zeros(9).long(), torch.arange(8)):
        with pytest.raises(ValueError, match="each of the rows"):
            inception_score.splits(rows(9), 3, order)
    with pytest.raises(ValueError, match="size must be at least 2"):
        inception_score.blocks(rows(9), 1)
    with pytest.raises(ValueError, match="at least 2 rows of logits"):
        inception_score.blocks(rows(1))


# FD-infinity


def test_fit_of_a_line() -> None:
    sizes = torch.tensor([10, 20, 50, 100])
    found = fit(sizes, 0.7 + 3 / sizes.double())
    assert (found.value, found.slope) == (pytest.approx(0.7), pytest.approx(3))
    assert found.standard_error < 1e-12
    wave = torch.tensor([1.0, -1, -1, 1]).double()
    x = torch.stack([torch.ones(4), 1 / sizes.double()], 1)
    y = 0.7 + 3 / sizes.double() + 0.1 * wave
    solution = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    covariance = torch.linalg.inv(x.mT @ x) * (y - x @ solution).square().sum() / 2
    found = fit(sizes, y)
    assert [found.value, found.slope] == pytest.approx(solution.tolist(), rel=1e-10)
    assert found.standard_error == pytest.approx(float(covariance[0, 0].sqrt()), rel=1e-10)


def test_infinity_is_a_function_of_rows_and_seed() -> None:
    a, reference = Features(rows(100, 1), "t", SHA), Statistics.of(rows(90, 2), SHA)
    found = frechet_infinity(a, reference, sizes=5, smallest=20, seed=1)
    assert found.sizes.tolist() == [20, 40, 60, 80, 100]
    assert found.distances[-1] == pytest.approx(frechet_distance(a.statistics(), reference))
    again = frechet_infinity(a, reference, sizes=5, smallest=20, seed=1)
    assert torch.equal(found.distances, again.distances)
    other = frechet_infinity(a, reference, sizes=5, smallest=20, seed=2)
    assert (other.distances[:-1] != found.distances[:-1]).all()
    assert frechet_infinity(a, reference).sizes.tolist()[0] == 10
    turn = Features(turned(a.values) + 5, "t", SHA)
    moved = frechet_infinity(
        turn, Statistics.of(turned(rows(90, 2)) + 5, SHA), sizes=5, smallest=20, seed=1
    )
    assert moved.value == pytest.approx(found.value, rel=1e-8)


def test_infinity_refuses() -> None:
    a, reference = Features(rows(40, 1), "t", SHA), Statistics.of(rows(90, 2), SHA)
    with pytest.raises(ValueError, match="different extractors"):
        frechet_infinity(Features(a.values, "t", "b" * 64), reference)
    with pytest.raises(ValueError, match="5 and 6 features"):
        frechet_infinity(Features(a.values[:, 1:], "t", SHA), reference)
    with pytest.raises(ValueError, match="NaN"):
        frechet_infinity(Features(a.values * math.nan, "t", SHA), reference)
    with pytest.raises(ValueError, match="sizes must be at least 3"):
        frechet_infinity(a, reference, sizes=2)
    for smallest in (1, 27):
        with pytest.raises(ValueError, match=r"smallest must be in 2\.\.26"):
            frechet_infinity(a, reference, smallest=smallest)
    with pytest.raises(ValueError, match="needs at least 2 rows"):
        frechet_infinity(a, Statistics.of(rows(1), SHA))
    with pytest.raises(ValueError, match="15 sizes need at least 16 rows, got 1"):
        frechet_infinity(Features(rows(1), "t", SHA), reference)
    five = torch.arange(1, 6)
    for sizes, distances in ((five, five[1:].double()), (five[:2], five[:2].double())):
        with pytest.raises(ValueError, match="K >= 3"):
            fit(sizes, distances)
    for sizes, distances in ((five * 0 + 3, five.double()), (five, five / 0), (five - 1, five)):
        with pytest.raises(ValueError, match="not all equal"):
            fit(sizes, distances.double())


# SSIM


def test_ssim_of_identical_images_is_one() -> None:
    found = ssim(images(5), images(5))
    assert found.values.tolist() == pytest.approx([1] * 5, abs=1e-12)
    assert (found.mean, found.fifth) == (pytest.approx(1), pytest.approx(1))


def test_ssim_of_constant_images() -> None:
    """No contrast on either side: (2 a b + C1) / (a^2 + b^2 + C1) is left."""
    levels = torch.tensor([0, 0, 10, 100, 255], dtype=torch.uint8)
    others = torch.tensor([0, 255, 20, 110, 254], dtype=torch.uint8)
    flat = torch.ones(5, 3, 11, 12, dtype=torch.uint8)
    found = ssim(levels.view(5, 1, 1, 1) * flat, others.view(5, 1, 1, 1) * flat)
    c1 = (0.01 * 255) ** 2
    wanted = [
        (2 * a * b + c1) / (a * a + b * b + c1)
        for a, b in zip(levels.tolist(), others.tolist(), strict=True)
    ]
    assert found.values.tolist() == pytest.approx(wanted, rel=1e-9)
    assert found.mean == pytest.approx(sum(wanted) / 5)


def test_ssim_is_its_definition() -> None:
    """At 11 x 11 there is one window: moments weighted by exp(-r^2 / (2 1.5^2))."""
    x, y = images(1, 1, 11, 11), images(1, 2, 11, 11)
    weights = [
        [math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / 4.5) for j in range(11)] for i in range(11)
    ]
    w = torch.tensor(weights, dtype=torch.float64)
    w /= w.sum()
    c1, c2, total = 2.55**2, 7.65**2, 0.0
    for a, b in zip(x[0].double(), y[0].double(), strict=True):
        m, n = (w * a).sum(), (w * b).sum()
        va, vb, c = (
            (w * (a - m) ** 2).sum(),
            (w * (b - n) ** 2).sum(),
            (w * (a - m) * (b - n)).sum(),
        )
        total += float((2 * m * n + c1) * (2 * c + c2) / ((m * m + n * n + c1) * (va + vb + c2)))
    assert ssim(x, y).mean == pytest.approx(total / 3, rel=1e-10)


def test_ssim_symmetries_pairs_and_chunks() -> None:
    x, y = images(9, 1), images(9, 2)
    y[::2] = (y[::2] // 8) + 3 * (x[::2] // 4)
    found = ssim(x, y)
    assert ssim(y, x).values.tolist() == pytest.approx(found.values.tolist(), rel=1e-10)
    for chunk in (1, 4, 9):
        assert ssim(x, y, chunk).values.tolist() == pytest.approx(found.values.tolist(), rel=1e-10)
    for turn in (lambda z: z.flip(3), lambda z: z.mT, lambda z: z.flip(1)):
        assert ssim(turn(x), turn(y)).mean == pytest.approx(found.mean, rel=1e-10)
    order = permutation(9, 4)
    torch.testing.assert_close(
        ssim(x[order], y[order]).values, found.values[order], rtol=0, atol=1e-12
    )
    assert found.values.min() < found.fifth < found.mean
    negative = ssim(x, 255 - x).values
    assert negative.min() >= -1
    assert negative.max() < 0


def test_ssim_refuses() -> None:
    image = images(2)
    with pytest.raises(ValueError, match="uint8"):
        ssim(image.float(), image)
    for other in (image[:1], image[:, :1], image[0]):
        with pytest.raises(ValueError, match="equal"):
            ssim(image, other)
    with pytest.raises(ValueError, match="equal"):
        ssim(image[:0], image[:0])
    with pytest.raises(ValueError, match="at least 11 x 11 pixels, got 10 x 17"):
        ssim(image[:, :, :10], image[:, :, :10])
    with pytest.raises(ValueError, match="chunk"):
        ssim(image, image, chunk=0)
