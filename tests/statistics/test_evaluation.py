"""Measures against simulation and real digits.

Seeds are fixed, so nothing here is flaky; tolerances are stated standard errors.
"""

import pytest
import torch
from torch import Tensor

from genvis.data.digits import DigitsConfig
from genvis.evaluation.extraction import extract
from genvis.evaluation.fidelity import nearest_distances
from genvis.evaluation.frechet import expected_floor, frechet_distance
from genvis.evaluation.references import copies, pixel_gaussian
from genvis.evaluation.spread import bootstrap
from genvis.evaluation.statistics import Statistics
from genvis.evaluation.svm import PixelSVM
from genvis.random import HashKeys, permutation

Labelled = tuple[Tensor, Tensor]
Z = 4.0


def everything(split: str) -> Labelled:
    digits = DigitsConfig().build(split)
    return digits.images, digits.labels


@pytest.fixture(scope="module")
def train() -> Labelled:
    return everything("train")


@pytest.fixture(scope="module")
def held_out() -> Labelled:
    return everything("val")


class Projection:
    """An untrained extractor: 24 random directions of the pixels, rectified."""

    name, sha256 = "random-projection", "0" * 64

    def __call__(self, images: Tensor) -> Tensor:
        grey = images.mean(1).flatten(1)
        return (grey @ HashKeys.of(3, range(grey.shape[1])).normal((24,))).relu()


def fd(a: Tensor, b: Tensor) -> float:
    left, right = (extract(Projection(), images).statistics() for images in (a, b))
    return frechet_distance(left, right)


def test_analytic_floor() -> None:
    """First order in 1/n: 4 % of the value at n >= 2 D (here n >= 10 D), and 4 standard errors."""
    dim, n1, n2, times = 8, 80, 120, 300
    scale = torch.linspace(0.2, 3, dim).double()
    pairs = HashKeys.of(11, range(times)).normal((n1 + n2, dim)).double() * scale
    found = torch.tensor(
        [frechet_distance(Statistics.of(x[:n1]), Statistics.of(x[n1:])) for x in pairs]
    )
    expected = expected_floor(torch.diag(scale**2), n1, n2)
    error = float(found.std()) / times**0.5
    assert abs(float(found.mean()) - expected) < 0.04 * expected + Z * error
    assert error < 0.02 * expected  # so that the test could see a wrong term


def test_bootstrap_covers() -> None:
    """At n = 50 the percentile interval of a mean covers as |t_49| < 1.96 sqrt(49/50): 94.2 %."""
    n, times = 50, 500
    samples = 3 + HashKeys.of(12, range(times)).normal((n,))
    found = [bootstrap(row, draws=500, seed=i) for i, row in enumerate(samples)]
    share = sum(interval.low <= 3 <= interval.high for interval in found) / times
    assert abs(share - 0.942) < Z * (0.942 * 0.058 / times) ** 0.5
    width = sum(interval.high - interval.low for interval in found) / times
    assert width == pytest.approx(2 * 1.96 / n**0.5, rel=0.05)


def test_pixel_gaussian_has_the_moments_of_its_class() -> None:
    """Far from +-1, so that clipping does nothing; rounding to 8 bits adds 5e-6 of variance."""
    n, size = 4000, 3 * 2 * 2
    mix = 0.04 * HashKeys.of(1, range(size)).normal((size,))
    for known in (200, 8):  # more images than pixels, and fewer
        flat = (HashKeys.of(2, range(known)).normal((size,)) @ mix).double().clamp(-0.95, 0.95)
        images = torch.cat([flat, -torch.ones_like(flat)]).view(-1, 3, 2, 2).float()
        labels = torch.arange(2 * known) // known
        new = torch.zeros(n, dtype=torch.int64)
        found = Statistics.of(
            pixel_gaussian(images, labels, new, HashKeys.of(3, range(n))).flatten(1)
        )
        mean, cov = flat.mean(0), flat.T.cov()
        deviation = (found.mean - mean) / (cov.diag() / n).sqrt()
        assert deviation.abs().max() < Z + 0.5  # twelve of them
        error = ((cov.square() + torch.outer(cov.diag(), cov.diag())) / n).sqrt()
        assert ((found.covariance - cov) / error).abs().max() < Z + 0.5


def test_svm_reads_held_out_digits(train: Labelled, held_out: Labelled) -> None:
    svm = PixelSVM.fit(*train)
    assert len(held_out[1]) == 300
    assert svm.accuracy(*held_out) >= 0.97
    shuffled = held_out[1][permutation(300, 5)]
    assert svm.accuracy(held_out[0], shuffled) < 0.1 + Z * (0.09 / 300) ** 0.5
    blank = torch.zeros_like(held_out[0])
    assert svm.accuracy(blank, held_out[1]) < 0.1 + Z * (0.09 / 300) ** 0.5
    with pytest.raises(ValueError, match="fitted on images"):
        svm.predict(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="labels must be"):
        svm.accuracy(held_out[0], held_out[1][:5])
    with pytest.raises(ValueError, match="at least 2 classes"):
        PixelSVM.fit(held_out[0], torch.zeros(300))


def test_distance_grows_with_corruption(train: Labelled, held_out: Labelled) -> None:
    images, labels = held_out
    noise = HashKeys.of(4, range(300)).normal(images.shape[1:])
    found = [fd(train[0], (images + sd * noise).clamp(-1, 1)) for sd in (0, 0.2, 0.4, 0.8)]
    assert found == sorted(found)
    assert found[-1] > 2 * found[0]
    assert fd(train[0], images[labels != 3]) > found[0]
    assert fd(images, images) < 1e-6
    order = permutation(64, 6)
    shuffled = images.flatten(2)[:, :, order].view_as(images)
    assert fd(train[0], shuffled) > 5 * found[0]


def test_copies_are_seen_as_copies(train: Labelled, held_out: Labelled) -> None:
    """The distance of training copies is below that of held-out images: only pixels tell them."""
    wanted = torch.arange(300) % 10
    copied = copies(*train, wanted, HashKeys.of(0, range(300)))
    assert nearest_distances(copied, train[0]).max() == 0
    assert nearest_distances(held_out[0], train[0]).quantile(0.05) > 0.5
