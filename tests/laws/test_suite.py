"""A protocol from images to records: the same numbers however the work is cut up."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import write_clip
from torch import Tensor

from genvis.checkpoint import load_tensors, save_tensors
from genvis.config import build
from genvis.evaluation.against import Dataset, DatasetImages, Moments
from genvis.evaluation.clip_score import CLIPScore
from genvis.evaluation.compare import comparisons, difference
from genvis.evaluation.extraction import extract
from genvis.evaluation.files import NpzImages
from genvis.evaluation.frechet import frechet_distance
from genvis.evaluation.keep import KEEP
from genvis.evaluation.kid import kid, kid_subsets
from genvis.evaluation.measures import (
    CMMD,
    KID,
    Frechet,
    FrechetInfinity,
    InceptionScore,
    PrecisionRecall,
)
from genvis.evaluation.observe import Seen, observe
from genvis.evaluation.records import Record, read, stamped, text
from genvis.evaluation.reference import Reference, load_reference, of_seen, save_reference
from genvis.evaluation.sources import source_of
from genvis.evaluation.statistics import Statistics
from genvis.evaluation.suite import Suite
from genvis.features.classifier import DIGITS_CNN_V1, Classifier
from genvis.features.inception import CONVERTED
from genvis.images import from_uint8, save_npz
from genvis.random import HashKeys
from genvis.samplers.generator import Generator

DIGITS = {
    "extractor": {"name": "digits-cnn-v1"},
    "reference": {"name": "dataset", "data": {"name": "digits"}},
    "making": {"count": 90},
    "chunk": 40,
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("evaluation opened a connection")

    monkeypatch.setattr("socket.socket.connect", refuse)


class Pixels:
    """Three linear features and two logits of the mean colours, which depend on the row alone."""

    name, sha256, resize = "colours", "ab" * 32, "mean"

    def __init__(self, dim: int = 3) -> None:
        self.dim, self.shown = dim, []

    def to(self, device: Any) -> "Pixels":
        return self

    def __call__(self, images: Tensor) -> Tensor:
        return self.heads(images)["features"]

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        self.shown.append(len(images))
        flat = images.flatten(1)[:, : self.dim]
        return {"features": flat.clone(), "logits": flat[:, :2].clone()}


def npz(path: Path, n: int, seed: int = 0, side: int = 12) -> NpzImages:
    uniform = HashKeys.of(seed, range(n)).uniform((3, side, side))
    images = (256 * uniform).to(torch.uint8)
    save_npz(path, from_uint8(images), torch.arange(n) % 10)
    return NpzImages(path)


@pytest.fixture
def images(tmp_path: Path) -> NpzImages:
    return npz(tmp_path / "images.npz", 103)


@pytest.fixture(scope="module")
def model(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    generator.save_pretrained(folder)
    return folder


def test_the_last_chunk_is_padded_and_the_padding_is_not_seen(
    images: NpzImages, tmp_path: Path
) -> None:
    extractor = Pixels()
    seen = observe(images, extractor, tmp_path / "out", chunk=25)
    assert extractor.shown == [25] * 5
    assert len(seen.rows("features")) == seen.n == 103
    whole = from_uint8(images.read(range(103))[0])
    assert torch.equal(seen.rows("features"), Pixels()(whole))
    assert torch.equal(seen.rows("label"), torch.arange(103) % 10)
    assert len(seen.rows("sha256").unique(dim=0)) == 103


@pytest.mark.parametrize("chunk", [1, 7, 64, 200])
def test_statistics_do_not_depend_on_the_chunk(
    images: NpzImages, tmp_path: Path, chunk: int
) -> None:
    found = observe(images, DIGITS_CNN_V1.build(), tmp_path / "out", chunk=chunk)
    whole = observe(images, DIGITS_CNN_V1.build(), tmp_path / "whole", chunk=103)
    a, b = found.statistics("features"), whole.statistics("features")
    torch.testing.assert_close(a.mean, b.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(a.covariance, b.covariance, rtol=1e-5, atol=1e-6)
    assert found.images_sha256 == whole.images_sha256
    direct = Statistics.of(found.rows("features"), found.sha256)
    torch.testing.assert_close(a.covariance, direct.covariance, rtol=1e-10, atol=1e-12)
    parts = sum(found.groups("features", 4)[1:], found.groups("features", 4)[0])
    torch.testing.assert_close(parts.covariance, direct.covariance, rtol=1e-10, atol=1e-12)


def test_what_is_there_is_not_looked_at_again(images: NpzImages, tmp_path: Path) -> None:
    first = observe(images, Pixels(), tmp_path / "out", chunk=25)
    marked = load_tensors(first.parts[1])
    marked["features"] = marked["features"] * 0
    save_tensors(first.parts[1], marked)
    first.parts[3].unlink()
    again = Pixels()
    seen = observe(images, again, tmp_path / "out", chunk=25)
    assert again.shown == [25]
    assert (seen.rows("features")[25:50] == 0).all()
    with pytest.raises(ValueError, match="another config: chunk: 30 here, 25 there"):
        observe(images, Pixels(), tmp_path / "out", chunk=30)
    with pytest.raises(ValueError, match=r"another config: by\.|another config: by"):
        observe(images, DIGITS_CNN_V1.build(), tmp_path / "out", chunk=25)


def test_a_refilled_folder_is_read_anew(tmp_path: Path) -> None:
    means = []
    for seed in (0, 1):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        seen = observe(npz(tmp_path / "x.npz", 30, seed), Pixels(), tmp_path / "out", chunk=25)
        means.append(seen.statistics("features").mean)
        assert torch.allclose(means[-1], seen.rows("features").double().mean(0))
    assert not torch.equal(*means)


def test_features_of_another_size_are_other_features(images: NpzImages, tmp_path: Path) -> None:
    seen = observe(images, Pixels(), tmp_path / "out", chunk=25)
    assert InceptionScore()(seen, None)[0].resize == "mean"
    larger = Pixels()
    larger.resize = "mean of 336"
    with pytest.raises(ValueError, match="another config: by"):
        observe(images, larger, tmp_path / "out", chunk=25)
    scorer = CLIPScore(path=str(write_clip(tmp_path))).build()
    assert scorer.identity != replace(scorer, config=replace(scorer.config, captions=True)).identity


def test_a_changed_dataset_is_another_set(tmp_path: Path) -> None:
    npz(tmp_path / "data.npz", 20)
    data = {"name": "npz", "path": str(tmp_path / "data.npz"), "view": {"size": 12}}
    images = DatasetImages(build(Dataset, {"data": data}).data, "train")
    before = images.identity
    assert images.identity == before
    npz(tmp_path / "data.npz", 20, seed=1)
    assert images.identity != before


def test_features_are_in_full_float32(images: NpzImages, tmp_path: Path) -> None:
    """TF32, torch's choice for convolutions on a GPU, would move them in the third digit."""
    conv, found = torch.backends.cudnn.conv, []

    class Noting(Pixels):
        def heads(self, images: Tensor) -> dict[str, Tensor]:
            found.append(conv.fp32_precision)
            return super().heads(images)

        def __call__(self, images: Tensor) -> Tensor:
            return self.heads(images)["features"]

    before = conv.fp32_precision
    observe(images, Noting(), tmp_path / "out", chunk=103)
    extract(Noting(), from_uint8(images.read(range(3))[0]))
    assert found == ["ieee", "ieee"]
    assert conv.fp32_precision == before


def test_a_damaged_part_is_named_with_its_cure(images: NpzImages, tmp_path: Path) -> None:
    seen = observe(images, Pixels(), tmp_path / "out", chunk=25)
    seen.parts[2].write_bytes(seen.parts[2].read_bytes()[:50])
    again = observe(images, Pixels(), tmp_path / "out", chunk=25)
    with pytest.raises(ValueError, match=r"50\.safetensors: .*; delete this file and run the eval"):
        again.statistics("features")


def test_images_that_were_not_made_have_no_keys(images: NpzImages, tmp_path: Path) -> None:
    suite = build(Suite, {"extractor": "digits-cnn-v1", "measures": ["inception_score"]})
    records, _ = suite.report(str(images.path), folder=tmp_path / "out")
    assert [(r.keys, r.seed) for r in records] == [(None, None)]


def test_kept_images_come_back(images: NpzImages, tmp_path: Path) -> None:
    pixels, cond = images.read(range(103))
    for keep, path in (("png", "images"), ("npz", "samples.npz")):
        out = tmp_path / keep
        kept = KEEP[keep](out)
        seen = observe(images, Pixels(), out, chunk=25, observers=[kept])
        kept.finish(seen.parts)
        from genvis.evaluation.sources import Making

        again = source_of(out / path).open(Making(), 25)
        assert torch.equal(again.read(range(103))[0], pixels)
    with np.load(tmp_path / "npz" / "samples.npz") as data:
        assert data["arr_0"].shape == (103, 12, 12, 3)
        assert (data["arr_1"] == cond.label.numpy()).all()
    names = sorted(path.name for path in (tmp_path / "png" / "images").iterdir())
    assert names == [f"{i:06d}.png" for i in range(103)]


def test_a_run_is_measured_without_being_stored(model: Path, tmp_path: Path) -> None:
    suite = build(Suite, {**DIGITS, "measures": [{"name": "frechet"}, {"name": "kid", "size": 50}]})
    records, text = suite.report(str(model), folder=tmp_path / "out")
    assert [r.metric.partition("[")[0] for r in records] == ["FD", "KID", "ms_per_image", "bytes"]
    fd = records[0]
    assert fd.subject == str(model)
    assert fd.keys == "0..89 of seed 0"
    assert fd.interval[0] < fd.beside["infinite images"] < fd.interval[1]
    assert fd.floor < fd.value
    assert fd.expected_floor > 0
    assert not fd.comparable_to_published
    assert "90 images for 32 features: the interval may be too narrow" in text
    stored = {p.name for p in (tmp_path / "out" / "samples").rglob("*.*") if p.name[0] != "."}
    assert stored == {"run.json", *(f"{i:09d}.safetensors" for i in (0, 40, 80))}
    assert (fd.resize, fd.seed) == (DIGITS_CNN_V1.build().resize, 0)
    again, _ = suite.report(str(model), folder=tmp_path / "out")
    kept = [(r.metric, r.value) for r in again]  # the time an image takes, too
    assert kept == [(r.metric, r.value) for r in records]
    written = read(tmp_path / "out" / "records.jsonl")
    assert [(r.metric, r.value) for r in written] == 2 * kept


def test_a_modified_model_beside_the_full_one(
    model: Path, generator: Generator, tmp_path: Path
) -> None:
    from genvis.quant.plan import Plan

    rules = {"rules": [{"match": ".*", "weight": {"name": "int", "bits": 4}}]}
    generator.changed(build(Plan, rules)).save_pretrained(tmp_path / "int4")
    suite = build(Suite, DIGITS)
    records, text = suite.report(str(tmp_path / "int4"), str(model), tmp_path / "out")
    rows = {r.metric.partition("[")[0]: r for r in records if r.subject != str(model)}
    assert set(rows) == {"FD", "psnr", "ms_per_image", "bytes", "drift-FD", "change-of-FD"}
    psnr, drift = rows["psnr"], rows["drift-FD"]
    assert (psnr.reference, psnr.n_reference) == (str(model), 90)
    assert psnr.reference_sha256 == drift.reference_sha256 is not None
    full = {r.metric.partition("[")[0]: r for r in records if r.subject == str(model)}
    change = rows["FD"].value - full["FD"].value
    assert rows["change-of-FD"].value == pytest.approx(change, abs=1e-9)
    assert rows["change-of-FD"].error < rows["FD"].error  # what both share is not noise
    assert rows["bytes"].value < full["bytes"].value
    assert 0 < rows["drift-FD"].value < rows["FD"].value
    assert rows["psnr"].beside["fifth percentile"] < rows["psnr"].value
    assert len([line for line in text.splitlines() if line.startswith(str(model))]) >= 2
    same, _ = suite.report(str(model), str(model), tmp_path / "same")
    nothing = {r.metric.partition("[")[0]: r.value for r in same}
    assert nothing["drift-FD"] == pytest.approx(0, abs=1e-9)
    assert nothing["change-of-FD"] == 0
    assert nothing["psnr"] == 100


def test_pairs_must_be_pairs(tmp_path: Path) -> None:
    for name, n, side in (("a", 40, 12), ("b", 41, 12), ("c", 40, 13)):
        npz(tmp_path / f"{name}.npz", n, side=side)
    suite = build(Suite, {"extractor": {"name": "digits-cnn-v1"}, "measures": []})
    given = [str(tmp_path / f"{name}.npz") for name in "abc"]
    with pytest.raises(ValueError, match="not pairs: 40 and 41 images"):
        suite.report(given[0], given[1], tmp_path / "1")
    with pytest.raises(ValueError, match=r"not pairs: images of \(3, 12, 12\) and \(3, 13, 13\)"):
        suite.report(given[0], given[2], tmp_path / "2")
    records, _ = suite.report(given[0], given[0], tmp_path / "3")
    assert {"psnr": 100, "ssim": 1}.items() <= {
        r.metric: round(r.value, 9) for r in records
    }.items()


def test_reference_files(images: NpzImages, tmp_path: Path) -> None:
    extractor = Pixels()
    seen = observe(images, extractor, tmp_path / "out", chunk=25)
    save_reference(tmp_path / "ref.safetensors", seen)
    found = load_reference(tmp_path / "ref.safetensors", extractor)
    direct = of_seen(seen, "x")
    assert (found.n, found.sha256) == (103, seen.images_sha256)
    assert torch.equal(found.statistics("features").m2, direct.statistics("features").m2)
    assert torch.equal(found.rows("features"), seen.rows("features"))
    assert Frechet()(seen, found)[0].value == pytest.approx(0, abs=1e-9)
    save_reference(tmp_path / "small.safetensors", seen, rows=False)
    lean = load_reference(tmp_path / "small.safetensors", extractor)
    with pytest.raises(ValueError, match=r"small\.safetensors has no features image by image"):
        PrecisionRecall()(seen, lean)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "tones"}, "another extractor: extractor colours there, tones here"),
        ({"sha256": "cd" * 32}, "another extractor: extractor_sha256 abab.* there, cdcd.* here"),
        ({"resize": "clean"}, "another extractor: resize mean there, clean here"),
    ],
)
def test_a_reference_of_another_extractor(
    images: NpzImages, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    seen = observe(images, Pixels(), tmp_path / "out", chunk=25)
    save_reference(tmp_path / "ref.safetensors", seen)
    other = Pixels()
    for name, value in change.items():
        setattr(other, name, value)
    with pytest.raises(ValueError, match=message):
        load_reference(tmp_path / "ref.safetensors", other)
    save_tensors(tmp_path / "plain.safetensors", {"x": torch.ones(2)})
    with pytest.raises(ValueError, match="not a reference file"):
        load_reference(tmp_path / "plain.safetensors", other)


class ADM(Pixels):
    """Named as the published Inception, so that published moments may be read."""

    name, sha256, resize = "inception-tf1_bilinear", CONVERTED, "tf1_bilinear"

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        return {**super().heads(images), "spatial": images.flatten(1)[:, 3:5].clone()}


def adm_file(path: Path, **more: Any) -> Moments:
    moments = {"mu": np.zeros(3), "sigma": np.eye(3), "mu_s": np.zeros(2), "sigma_s": np.eye(2)}
    np.savez(path, **{**moments, **more})
    return Moments(path=str(path))


def test_adm_references_are_read_as_they_are(images: NpzImages, tmp_path: Path) -> None:
    real = images.read(range(30))[0].permute(0, 2, 3, 1).numpy()
    reference = adm_file(tmp_path / "VIRTUAL.npz", arr_0=real).open(ADM(), tmp_path / "r", 25)
    seen = observe(images, ADM(), tmp_path / "out", chunk=25)
    names = []
    for measure in (Frechet(), Frechet(head="spatial"), PrecisionRecall(), InceptionScore()):
        names += measure(seen, reference)
    kinds = [record.metric.partition("[")[0] for record in names]
    four = ["precision", "recall", "density", "coverage"]
    assert kinds == ["FID", "sFID", *four, "IS-blocks"]
    assert all(
        record.metric.endswith(f"[inception-tf1_bilinear:{CONVERTED[:6]}]") for record in names
    )
    assert names[3].value == 1  # the 30 real images are among ours
    assert not any(record.comparable_to_published for record in names)


def test_a_number_is_comparable_if_papers_measure_so(tmp_path: Path) -> None:
    """50,000 images, the published weights with ADM's resizer, and a reference that is known."""

    x = HashKeys.of(3, range(50_000)).normal((2,)).float()
    save_tensors(tmp_path / "part", {"features": x, "logits": x})
    seen = Seen((tmp_path / "part",), 50_000, ADM.name, ADM.sha256, ADM.resize)
    moments = {"features": Statistics.of(x[:100], ADM.sha256)}
    real = Reference("r", "ab", None, moments, {"features": lambda: x[:30]}, published=True)

    def comparable(seen: Seen, real: Reference) -> list[bool]:
        measures = Frechet(groups=2), InceptionScore(groups=0)
        return [each(seen, real)[0].comparable_to_published for each in measures]

    assert comparable(seen, real) == [True, True]
    assert comparable(seen, replace(real, published=False)) == [False, True]
    assert comparable(replace(seen, resize="clean"), real) == [False, False]
    save_tensors(tmp_path / "few", {"features": x[1:], "logits": x[1:]})
    assert comparable(replace(seen, n=49_999, parts=(tmp_path / "few",)), real) == [False, False]


def test_a_reference_is_published_by_its_name_and_content(tmp_path: Path) -> None:
    whole = {"mu": 2048, "mu_s": 2023}
    full = {name: np.zeros(size, np.float32) for name, size in whole.items()}
    full |= {f"sigma{k[2:]}": np.eye(size, dtype=np.float32) for k, size in whole.items()}
    known, other = tmp_path / "VIRTUAL_imagenet256_labeled.npz", tmp_path / "mine.npz"
    for path in (known, other):
        np.savez(path, **full)
    for path, resize, expected in (
        (known, "tf1_bilinear", True),
        (known, "clean", False),
        (other, "tf1_bilinear", False),
    ):
        extractor = ADM()
        extractor.resize = resize
        extractor.name = f"inception-{resize}"
        found = Moments(path=str(path), resize=resize).open(extractor, tmp_path / "r", 25)
        assert found.published == expected
    adm_file(known)  # of the name, but three features
    assert not Moments(path=str(known)).open(ADM(), tmp_path / "r", 25).published


def test_published_moments_are_for_the_published_inception(tmp_path: Path) -> None:
    given = adm_file(tmp_path / "x.npz")
    for extractor in (Pixels(), type("Clean", (ADM,), {"resize": "clean"})()):
        with pytest.raises(
            ValueError, match=r"x\.npz: a reference of another extractor: .* not of"
        ):
            given.open(extractor, tmp_path / "r", 25)
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((3, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="not mu and sigma"):
        Moments(path=str(tmp_path / "images.npz")).open(ADM(), tmp_path / "r", 25)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cut\.npz: truncated"):
        Moments(path=str(tmp_path / "cut.npz")).open(ADM(), tmp_path / "r", 25)
    with pytest.raises(ValueError, match="no such file"):
        Moments(path=str(tmp_path / "none.npz")).open(ADM(), tmp_path / "r", 25)
    np.savez(tmp_path / "half.npz", mu=np.zeros(3), sigma=np.eye(3), mu_s=np.zeros(2))
    with pytest.raises(ValueError, match=r"half\.npz: mu_s and sigma_s belong together"):
        Moments(path=str(tmp_path / "half.npz")).open(ADM(), tmp_path / "r", 25)


def test_fewer_images_than_features(tmp_path: Path) -> None:
    extractor = Pixels(dim=60)
    real = observe(npz(tmp_path / "r.npz", 400, 1), extractor, tmp_path / "r", chunk=100)
    seen = observe(npz(tmp_path / "s.npz", 50, 2), extractor, tmp_path / "s", chunk=100)
    record = Frechet()(seen, of_seen(real, "real"))[0]
    assert record.warning == (
        "50 images for 60 features: the value is biased upward by about "
        f"{record.expected_floor:.3g}, to first order, and the interval does not hold"
    )
    assert record.value > 0


def test_the_floor_is_of_as_many_images_as_the_value(tmp_path: Path) -> None:
    """Held-out images in a random choice of N; where they are fewer, the line says how many."""
    extractor, sets = Pixels(), {"train": 400, "val": 300, "few": 60}
    seen = {
        name: observe(npz(tmp_path / f"{name}.npz", n, n), extractor, tmp_path / name, chunk=100)
        for name, n in sets.items()
    }
    real = of_seen(seen["train"], "train", seen["val"])
    record = Frechet()(seen["few"], real)[0]
    assert record.n_floor == 60
    known = seen["train"].statistics("features")
    assert record.floor > 2 * frechet_distance(seen["val"].statistics("features"), known)
    assert "floor train-val 0." in text(record)
    many = Frechet()(seen["train"], of_seen(seen["train"], "train", seen["few"]))[0]
    assert many.n_floor == 60
    assert "floor train-val of 60 0." in text(many)


def test_the_smallest_subset_is_not_too_small(tmp_path: Path) -> None:
    for dim, n, warned in ((30, 200, False), (30, 90, True)):
        extractor = Pixels(dim)
        real = observe(npz(tmp_path / f"r{n}.npz", 400, 1), extractor, tmp_path / f"r{n}", chunk=99)
        seen = observe(npz(tmp_path / f"s{n}.npz", n, 2), extractor, tmp_path / f"s{n}", chunk=99)
        record = FrechetInfinity()(seen, of_seen(real, "real"))[0]
        assert record.interval[0] < record.value < record.interval[1]
        assert record.error > record.beside["fit error"]
        wanted = "subsets of 45 images for 30 features: FD is no line in 1/N there"
        assert record.warning == (wanted if warned else None)


def test_kid_is_that_of_all_pairs(tmp_path: Path) -> None:
    extractor = Pixels()
    real = observe(npz(tmp_path / "r.npz", 150, 1), extractor, tmp_path / "r", chunk=100)
    seen = observe(npz(tmp_path / "s.npz", 120, 2), extractor, tmp_path / "s", chunk=100)
    a, b = seen.rows("features"), real.rows("features")
    record = KID(subsets=7, size=40)(seen, of_seen(real, "real"))[0]
    assert record.value == kid(a, b)
    cut = kid_subsets(a, b, subsets=7, size=40)
    assert record.beside == {"mean of subsets": cut.mean, "sd of subsets": cut.sd}
    assert sum(record.interval) / 2 == pytest.approx(record.value)
    assert KID(subsets=0)(seen, of_seen(real, "real"))[0].beside == {}


def test_heads_and_references_that_are_not_there(images: NpzImages, tmp_path: Path) -> None:
    seen = observe(images, Pixels(), tmp_path / "out", chunk=25)
    with pytest.raises(ValueError, match="no statistics of spatial"):
        Frechet(head="spatial")(seen, of_seen(seen, "x"))
    with pytest.raises(ValueError, match="colours gives no spatial; there are features, label"):
        seen.rows("spatial")
    with pytest.raises(ValueError, match="needs a reference in the evaluation's config"):
        FrechetInfinity()(seen, None)
    with pytest.raises(ValueError, match="groups must be at least 2"):
        Frechet(groups=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"chunk": 0}, "chunk must be at least 1 image, got 0"),
        ({"making": {"count": 0}}, "count must be at least 1, got 0"),
        ({"measures": [{"name": "frechet_infinity", "sizes": 2}]}, "sizes must be at least 3"),
        ({"measures": [{"name": "kid", "subsets": 1}]}, "subsets must be 0 or at least 2"),
        ({"measures": [{"name": "kid", "size": 1}]}, "of at least 2 images, got 100 of 1"),
        ({"measures": [{"name": "precision_recall", "k": 0}]}, "k must be at least 1 neighbour"),
        ({"measures": [{"name": "cmmd", "sigma": 0}]}, "sigma must be positive, got 0"),
        ({"reference": {"name": "moments", "path": "x", "n": 1}}, "n must be at least 2, got 1"),
        ({"extractor": {"name": "clip", "path": "x", "size": 0}}, "size must be at least 1 pixel"),
    ],
)
def test_values_out_of_range_are_refused_by_the_config(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(Suite, {**DIGITS, **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lpips": "alex"}, "lpips compares pairs: give --against"),
        ({"measures": [{"name": "kid"}]}, "KID by subsets of 1000 needs at least 1000 images"),
        ({"measures": [{"name": "frechet", "head": "spatial"}]}, "the extractor gives no spatial;"),
        ({"reference": None}, "a distance needs a reference"),
        ({"making": {"count": 3}}, "a distance with an interval needs at least 4 images, got 3"),
        ({"making": {"count": 9}, "measures": [{"name": "frechet_infinity"}]}, "15 sizes needs"),
        ({"measures": [{"name": "precision_recall", "k": 81}]}, "needs at least 82 images, got 81"),
        (
            {"scores": [{"name": "clip_score", "path": "nowhere"}]},
            r"nowhere: no config\.json there",
        ),
        ({"measures": [{"name": "shapes_accuracy"}]}, "shapes_accuracy needs images with prompts"),
        (
            {"scores": [{"name": "clip_score", "path": "shapes-clip-v1"}]},
            "clip_score needs images with prompts",
        ),
    ],
)
def test_mistakes_are_told_before_any_image_is_made(
    model: Path, tmp_path: Path, given: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(Suite, {**DIGITS, **given}).report(str(model), folder=tmp_path / "out")
    assert not (tmp_path / "out" / "samples").exists()


@pytest.mark.parametrize(
    ("prompt", "given", "message"),
    [
        ("a cat", {"measures": [{"name": "shapes_accuracy"}]}, "'a cat' is no caption of shapes"),
        (
            "a red heart " * 30,
            {"measures": [], "scores": [{"name": "clip_score", "path": "shapes-clip-v1"}]},
            "tokens, more than the",
        ),
    ],
)
def test_prompts_that_cannot_be_judged_are_told_before_any_image_is_looked_at(
    tmp_path: Path, prompt: str, given: Any, message: str
) -> None:
    (tmp_path / "images").mkdir()
    for name, said in (("0", "a red heart"), ("1", prompt)):
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / f"{name}.png")
        (tmp_path / "images" / f"{name}.txt").write_text(said)
    suite = build(Suite, {**DIGITS, "reference": None, "chunk": 1, **given})
    with pytest.raises(ValueError, match=message):
        suite.report(str(tmp_path / "images"), folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lpips_is_looked_for_before_any_image_is_made(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GENVIS_LPIPS_WEIGHTS", raising=False)
    with pytest.raises(ValueError, match="no LPIPS weights"):
        build(Suite, {**DIGITS, "lpips": "alex"}).report(str(model), str(model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_measures_refuse_references_without_rows(images: NpzImages, tmp_path: Path) -> None:
    seen = observe(images, Pixels(), tmp_path / "out", chunk=25)
    lean = replace(of_seen(seen, "lean"), features={})
    for measure in (KID(size=50), PrecisionRecall(), CMMD()):
        with pytest.raises(ValueError, match="reference lean has no features image by image"):
            measure.check(frozenset({"features"}), lean, 103)
    with pytest.raises(ValueError, match="gives no logits; there are features"):
        InceptionScore().check(frozenset({"features"}), None, 103)
    with pytest.raises(ValueError, match="inception score needs at least 10 images, got 9"):
        InceptionScore(convention="splits").check(frozenset({"logits"}), None, 10)


def fd(value: float, half: float, **fields: Any) -> Record:
    fixed = {"metric": "KID[cnn:3fa9c1]", "extractor": "cnn", "n": 50, "n_reference": 60}
    sha = {"extractor_sha256": "3fa9c1" + "0" * 58}
    interval = (value - half, value + half)
    return stamped(value=value, interval=interval, **{**fixed, **sha, **fields})


def test_a_difference_is_compared_with_its_noise() -> None:
    assert not difference(fd(5, 3), fd(9.9, 4)).real  # 4.9 against 5
    assert difference(fd(5, 3), fd(10.1, 4)).real
    assert "within the noise" in str(difference(fd(5, 3), fd(2, 4)))
    changes = ({"n": 51}, {"n_reference": 9}, {"reference_sha256": "a"}, {"resize": "clean"})
    for changed in changes:
        with pytest.raises(ValueError, match=f"cannot be compared: {next(iter(changed))}"):
            difference(fd(5, 3), fd(5, 3, **changed))
    records = [fd(1, 1, subject="a"), fd(7, 1, subject="b"), fd(2, 1, subject="a")]
    assert [found.value for found in comparisons(records, "a", "b")] == [5]  # the newest
    with pytest.raises(ValueError, match="of 'c'; there are a, b"):
        comparisons(records, "a", "c")
    other = {"metric": "CMMD[cnn:3fa9c1]", "value": 1.0, "half": 0.5}
    records += [fd(subject="a", **other), fd(subject="b", n=51, **other)]
    told = [str(found) for found in comparisons(records, "a", "b")]  # one does not stop the others
    assert told[0].startswith("KID[cnn:3fa9c1]: +5")
    assert told[1] == "CMMD[cnn:3fa9c1]: cannot be compared: n is 50 and 51"
    records.append(fd(subject="d", **{**other, "metric": "IS-whole[cnn:3fa9c1]"}))
    alone = r"nothing to compare: b has CMMD\[.*, KID\[.*; d has IS-whole\["
    with pytest.raises(ValueError, match=alone):
        comparisons(records, "b", "d")


def test_shipped_and_other_classifiers_are_chosen_by_name(tmp_path: Path) -> None:
    first = build(Suite, {"extractor": "digits-cnn-v1"}).extractor.build()
    assert isinstance(first, Classifier)
    first.save_pretrained(tmp_path / "mine")
    given = {"name": "classifier", "source": str(tmp_path / "mine")}
    other = build(Suite, {"extractor": given}).extractor.build()
    assert (other.name, other.sha256) == ("mine", first.sha256)
    for wrong, message in (
        ({"name": "inception", "resize": "lanczos"}, "resize must be one of clean"),
        ({"name": "inception", "weights": "mine"}, "need the path"),
        ({"name": "vgg"}, "'vgg' is not one of"),
    ):
        with pytest.raises(ValueError, match=message):
            build(Suite, {"extractor": wrong})
    missing = build(Suite, {"extractor": {"name": "inception", "path": str(tmp_path)}})
    with pytest.raises(ValueError, match="no Inception weights: looked in the path given"):
        missing.extractor.build()


def test_records_say_when_a_number_is_comparable() -> None:
    sha = {"extractor": "inception-tf1_bilinear", "extractor_sha256": CONVERTED}
    name = f"FID[inception-tf1_bilinear:{CONVERTED[:6]}]"
    given = {"metric": name, "value": 2.0, "n": 50_000, "expected_floor": 0.1, **sha}
    assert stamped(**given, comparable_to_published=True).comparable_to_published
    changed = {**given, "metric": "KID[cnn:3fa9c1]", "extractor": "cnn"}
    changed["extractor_sha256"] = "3fa9c1" + "0" * 58
    with pytest.raises(ValueError, match="comparable_to_published needs the published"):
        stamped(**changed, comparable_to_published=True)
    with pytest.raises(ValueError, match="does not name its extractor"):
        stamped(**{**changed, "metric": "KID"})
    assert json.dumps(build(Record, {"metric": "x", "value": 1, "n": 1}).value) == "1.0"
