"""Image fidelity, reference generators and draws: closed forms, exactness, refusals."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from genvis.evaluation.extraction import Features, extract, fingerprint, frechet_name
from genvis.evaluation.fidelity import CAP, nearest_distances, psnr
from genvis.evaluation.frechet import frechet_distance
from genvis.evaluation.references import copies, pixel_gaussian
from genvis.evaluation.spread import Spread, bootstrap, frechet_over_draws
from genvis.images import from_uint8, to_uint8
from genvis.random import HashKeys
from genvis.types import take

SHA = "3fa9c1" + "0" * 58
NAME = "FD[digits-cnn-v1:3fa9c1]"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("evaluation opened a connection")

    monkeypatch.setattr("socket.socket.connect", refuse)


def noise(n: int, seed: int = 0, height: int = 4, width: int = 3) -> Tensor:
    """Images (n, 3, height, width) well inside [-1, 1], on 8-bit levels."""
    images = 0.3 * HashKeys.of(seed, range(n)).normal((3, height, width))
    return from_uint8(to_uint8(images.clamp(-1, 1)))


def features(n: int, seed: int = 0, dim: int = 4, sha: str = SHA) -> Features:
    return Features(HashKeys.of(seed, range(n)).normal((dim,)), "digits-cnn-v1", sha)


class Mean:
    """An extractor of two numbers, which remembers what it was shown."""

    name, sha256 = "means", SHA

    def __init__(self) -> None:
        self.shown: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.shown.append(images)
        return torch.stack([images.mean((1, 2, 3)), images.std((1, 2, 3))], 1)


def test_psnr_closed_forms() -> None:
    a = torch.full((4, 3, 5, 2), 100, dtype=torch.uint8)
    b = a.clone()
    b[1] += 1  # MSE 1
    b[2, :, 0] += 10  # MSE 100 / 5
    b[3] -= 51  # MSE (255/5)^2
    found = psnr(a, b)
    decibels = [CAP, 20 * math.log10(255), 10 * math.log10(255**2 / 20), 20 * math.log10(5)]
    assert found.values.tolist() == pytest.approx(decibels, abs=1e-10)
    assert found.mean == pytest.approx(sum(decibels) / 4)  # of decibels, not of errors
    low = sorted(decibels)
    assert found.fifth == pytest.approx(low[0] + 0.15 * (low[1] - low[0]))


def test_psnr_refuses() -> None:
    image = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="uint8"):
        psnr(image.float(), image.float())
    with pytest.raises(ValueError, match="equal"):
        psnr(image, image[:1])
    with pytest.raises(ValueError, match="equal"):
        psnr(image[:0], image[:0])


@pytest.mark.parametrize("chunk", [1, 3, 256])
def test_nearest_is_exact(chunk: int) -> None:
    images, references = noise(7, seed=1), noise(20, seed=2)
    images[4] = references[13]
    found = nearest_distances(images, references, chunk)
    each = [[(a - b).double().norm() for b in references] for a in images]
    torch.testing.assert_close(found, torch.tensor(each).double().amin(1), rtol=1e-6, atol=0)
    assert found[4] == 0


def test_nearest_sees_what_a_file_would_hold() -> None:
    references = noise(5)
    assert nearest_distances(references + 0.4 / 127.5, references).tolist() == [0.0] * 5


def test_images_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="differ"):
        nearest_distances(noise(2), noise(2, height=5))
    with pytest.raises(ValueError, match="floating point"):
        nearest_distances(to_uint8(noise(2)), noise(2))
    with pytest.raises(ValueError, match="NaN"):
        nearest_distances(noise(2) * float("nan"), noise(2))
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        nearest_distances(noise(2)[:, :1], noise(2)[:, :1])


@pytest.mark.parametrize("generate", [pixel_gaussian, copies])
def test_references_are_functions_of_their_keys(generate: Any) -> None:
    images, labels = noise(30), torch.arange(30) % 3
    new, keys = torch.tensor([2, 0, 1, 0, 2, 2]), HashKeys.of(5, range(6))
    whole = generate(images, labels, new, keys)
    parts = [generate(images, labels, new[i], take(keys, i)) for i in (slice(0, 2), slice(2, 6))]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole, from_uint8(to_uint8(whole)))
    assert whole.shape == (6, 3, 4, 3)
    assert whole.dtype == torch.float32
    assert whole.abs().max() <= 1
    assert not torch.equal(whole[1], whole[3])  # one class, two keys


def test_copies_are_training_images_of_the_class() -> None:
    images, labels = noise(30), torch.arange(30) % 3
    new = torch.arange(300) % 3
    found = copies(images, labels, new, HashKeys.of(1, range(300)))
    same = (found[:, None] == images[None]).flatten(2).all(2)  # (300, 30)
    assert same.any(1).all()
    assert torch.equal(labels[same.int().argmax(1)], new)
    assert same.any(0).all()  # every one of them is drawn


def test_references_refuse_unknown_classes() -> None:
    images, labels, keys = noise(4), torch.tensor([0, 0, 0, 1]), HashKeys.of(0, range(1))
    with pytest.raises(ValueError, match="class 1 needs 2 training images, got 1"):
        pixel_gaussian(images, labels, torch.tensor([1]), keys)
    with pytest.raises(ValueError, match="class 7 needs 1 training images, got 0"):
        copies(images, labels, torch.tensor([7]), keys)
    with pytest.raises(ValueError, match="labels must be"):
        copies(images, labels[:2], torch.tensor([0]), keys)


def test_extraction_rounds_and_batches() -> None:
    images, one = noise(10), Mean()
    found = extract(one, images + 0.4 / 127.5, batch=4)
    assert [len(shown) for shown in one.shown] == [4, 4, 2]
    assert torch.equal(torch.cat(one.shown), images)
    assert torch.equal(found.values, Mean()(images))
    assert found.metric == "FD[means:3fa9c1]"


def test_names_of_metrics() -> None:
    assert frechet_name("digits-cnn-v1", SHA.upper()) == NAME
    for name in ("FID", "inception-v3", ""):
        with pytest.raises(ValueError, match="cannot be called"):
            frechet_name(name, SHA)
    for sha in ("", "3fa9c1", "z" * 64):
        with pytest.raises(ValueError, match="64 hex digits"):
            frechet_name("digits-cnn-v1", sha)


def test_fingerprints() -> None:
    images = noise(3)
    assert fingerprint(images) == fingerprint(images + 0.4 / 127.5)
    assert fingerprint(images) != fingerprint(images.flip(0))


def test_draws_are_deterministic_and_equal_sized() -> None:
    a, b = features(40, 1), features(25, 2)
    found = frechet_over_draws(a, b, draws=6, seed=3)
    assert found.size == 25
    assert len(found.values.unique()) == 6
    assert torch.equal(found.values, frechet_over_draws(a, b, draws=6, seed=3).values)
    assert not torch.equal(found.values, frechet_over_draws(a, b, draws=6, seed=4).values)
    spread = Spread(torch.tensor([1.0, 2.0, 3.0, 6.0]), 9)
    assert (spread.mean, spread.sd) == (3.0, pytest.approx(math.sqrt(14 / 3)))
    assert spread.standard_error == pytest.approx(math.sqrt(14 / 12))


def test_a_draw_of_everything_is_everything() -> None:
    """Without replacement: with `size` all rows, every draw is the distance of the whole sets."""
    a, b = features(25, 1), features(25, 2)
    whole = frechet_distance(a.statistics(), b.statistics())
    assert frechet_over_draws(a, b, draws=3).values.tolist() == pytest.approx([whole] * 3)


def test_draws_with_class_counts() -> None:
    """Rows are spread by class, so the wrong counts would show as a distance of means."""
    labels = torch.arange(60) % 3
    counts = torch.tensor([5, 0, 9])
    offset = labels[:, None] * torch.tensor([100.0])
    a = replace(features(60, 1), values=features(60, 1).values * 1e-3 + offset)
    b = replace(a, values=features(60, 2).values * 1e-3 + offset)
    found = frechet_over_draws(a, b, classes=(labels, labels, counts), draws=4)
    assert found.size == 14
    assert found.values.max() < 1e-3
    assert frechet_over_draws(a, b, size=14, draws=4).values.max() > 1
    with pytest.raises(ValueError, match="21 images of class 0, there are 20"):
        frechet_over_draws(a, b, classes=(labels, labels, torch.tensor([21])))
    with pytest.raises(ValueError, match="labels must be"):
        frechet_over_draws(a, b, classes=(labels[1:], labels, counts))
    with pytest.raises(ValueError, match="not both"):
        frechet_over_draws(a, b, size=14, classes=(labels, labels, counts))


def test_draws_refuse() -> None:
    with pytest.raises(ValueError, match="different extractors"):
        frechet_over_draws(features(9), features(9, sha="b" * 64))
    for size in (1, 10):
        with pytest.raises(ValueError, match=r"size must be in 2\.\.9"):
            frechet_over_draws(features(9), features(12), size=size)
    with pytest.raises(ValueError, match="draws must be at least 2"):
        frechet_over_draws(features(9), features(9), draws=1)


def test_bootstrap_of_constants_and_refusals() -> None:
    found = bootstrap(torch.full((8,), 0.25))
    assert (found.mean, found.low, found.high) == (0.25, 0.25, 0.25)
    for wrong in (torch.ones(1), torch.ones(3, 2), torch.tensor([1.0, float("nan")])):
        with pytest.raises(ValueError, match="finite numbers"):
            bootstrap(wrong)
    with pytest.raises(ValueError, match="level"):
        bootstrap(torch.ones(4), level=95)
