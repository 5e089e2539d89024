"""Latents as data: what is cached is what the tokenizer would say, however it was made."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genvis.checkpoint import load_tensors, save_tensors
from genvis.config import build, dump, override, write_yaml
from genvis.data.latents import HEADER, LatentsConfig, identity, read_header
from genvis.random import HashKeys
from genvis.training.encoding import Encoding, encode
from genvis.training.fit import fit
from genvis.training.order import Order, stream
from genvis.training.recipe import Recipe
from genvis.types import Moments
from tests.launch import launch
from tests.laws.coding import BlurConfig

BLUR = "tests.laws.coding:BlurConfig"
COUNT = 40


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 captioned pictures in two classes; every fifth is held out."""
    root = tmp_path_factory.mktemp("pictures")
    values = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), np.uint8)
    for i, picture in enumerate(values):
        path = root / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(path)
        path.with_suffix(".txt").write_text(f"picture {i}\nthe same {i}")
    return root


def encoding(pictures: Path, *overrides: str) -> Encoding:
    plain = {
        "data": {
            "name": "files", "root": str(pictures), "labels": "folders", "captions": "txt",
            "held_out": 5, "view": {"size": 8, "flip": True},
        },
        "tokenizer": {"name": BLUR},
        "dtype": "float32",
        "shard": 6,
        "batch": 3,
    }  # fmt: skip
    return build(Encoding, override(plain, overrides))


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode(encoding(pictures), tmp_path_factory.mktemp("whole") / "latents")


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_cached_latents_are_those_of_the_tokenizer(pictures: Path, whole: Path) -> None:
    """Moments, labels and captions; under keys, the flips and captions of the pictures."""
    made = encoding(pictures)
    tokenizer = made.tokenizer.build()
    for split in ("train", "val"):
        data, cached = made.data.build(split), LatentsConfig(folder=str(whole)).build(split)
        assert len(data) == len(cached) == (32 if split == "train" else 8)
        rows = [7, 0, 5, 7, 6]
        keys = HashKeys.of(3, range(5))
        for images, latents in (
            (data[rows], cached[rows]),
            (data.augmented(rows, keys), cached.augmented(rows, keys)),
        ):
            with torch.no_grad():
                wanted = tokenizer.encode(images.x)
            assert isinstance(latents.x, Moments)
            torch.testing.assert_close(latents.x.mean, wanted.mean, rtol=0, atol=1e-6)
            torch.testing.assert_close(latents.x.std, wanted.std, rtol=0, atol=1e-6)
            assert torch.equal(latents.cond.label, images.cond.label)
            assert latents.cond.prompts == images.cond.prompts


def test_a_flipped_latent_is_of_the_flipped_image(whole: Path) -> None:
    tensors = load_tensors(whole / "train" / "latents-00000.safetensors")
    assert (tensors["mean_flip"] - tensors["mean"].flip(-1)).abs().max() > 0.1
    assert torch.equal(tensors["index"], torch.arange(6))
    assert set(tensors) == {"mean", "std", "mean_flip", "std_flip", "label", "index"}


def test_samples_stay_fresh(whole: Path) -> None:
    moments = LatentsConfig(folder=str(whole)).build("train")[[0] * 1000].x
    z = moments.sample(HashKeys.of(0, range(1000)))
    error = (z.mean(0) - moments.mean[0]).abs() / moments.std[0]
    assert error.max() < 5 / 1000**0.5
    torch.testing.assert_close(z.std(0), moments.std[0], rtol=0.15, atol=0)


def test_the_manifest_measures_samples(whole: Path) -> None:
    manifest = json.loads((whole / "train" / "manifest.json").read_text())
    data = LatentsConfig(folder=str(whole)).build("train")
    moments = data[range(32)].x
    z = torch.cat([moments.sample(HashKeys.of(s, range(32))) for s in range(200)]).double()
    measured = z.transpose(0, 1).flatten(1)
    torch.testing.assert_close(
        measured.mean(1), torch.tensor(manifest["mean"]).double(), rtol=0, atol=0.02
    )
    torch.testing.assert_close(
        measured.std(1), torch.tensor(manifest["std"]).double(), rtol=0.02, atol=0
    )
    assert manifest["shape"] == [4, 4, 4]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(pictures: Path, whole: Path, tmp_path: Path, dtype: str) -> None:
    folder = encode(encoding(pictures, f"dtype={dtype}"), tmp_path / "half")
    half, full = (LatentsConfig(folder=str(f)).build("val")[range(8)].x for f in (folder, whole))
    tolerance = 2.0**-11 if dtype == "float16" else 2.0**-8
    torch.testing.assert_close(half.mean, full.mean, rtol=tolerance, atol=1e-7)
    assert half.mean.dtype == half.std.dtype == torch.float32
    stored = load_tensors(folder / "val" / "latents-00000.safetensors")["mean"]
    assert stored.dtype == getattr(torch, dtype)


def test_shards_do_not_depend_on_who_makes_them(
    pictures: Path, whole: Path, tmp_path: Path
) -> None:
    """Interrupted after any shard, loaded by other processes, or by two of them: the same bytes."""
    partial = tmp_path / "partial"
    shutil.copytree(whole, partial)
    for name in ("train/latents-00001.safetensors", "train/manifest.json", "val/manifest.json"):
        (partial / name).unlink()
    before = {path: path.stat().st_mtime_ns for path in partial.rglob("*.safetensors")}
    encode(encoding(pictures), partial, workers=2)
    assert contents(partial) == contents(whole)
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())

    (tmp_path / "encode.yaml").write_text(write_yaml(dump(encoding(pictures))))
    two = launch(2, "train_scripts/encode.py", tmp_path / "encode.yaml", tmp_path / "two")
    assert two.stdout.count("latents of train, val") == 1
    assert contents(tmp_path / "two") == contents(whole)


def test_killed_at_a_random_moment_the_shards_are_the_same(pictures: Path, tmp_path: Path) -> None:
    made = encoding(pictures, "shard=1", "batch=1")
    (tmp_path / "encode.yaml").write_text(write_yaml(dump(made)))
    command = [sys.executable, "train_scripts/encode.py", str(tmp_path / "encode.yaml")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "."}
    folder = tmp_path / "killed"
    killed = subprocess.Popen([*command, str(folder)], env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(folder.glob("train/*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.02))
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert list(folder.glob("train/*.safetensors"))
    assert not (folder / "val" / "manifest.json").exists()
    subprocess.run([*command, str(folder)], env=env, check=True, capture_output=True)
    fresh = contents(encode(made, tmp_path / "fresh"))
    left = contents(folder)  # a killed write may leave its temporary file, and nothing else
    assert {
        name: data for name, data in left.items() if not Path(name).name.startswith(".")
    } == fresh


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tokenizer.seed=1"], r"tokenizer\.seed: 1 here, 0 there"),
        (["data.view.size=16"], r"data\.view\.size: 16 here, 8 there"),
        (["dtype=bfloat16"], r"dtype: 'bfloat16' here, 'float32' there"),
    ],
)
def test_a_folder_of_another_encoding_is_refused(
    pictures: Path, whole: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encode(encoding(pictures, *overrides), whole)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tokenizer.seed=1"], r"train/latents-00002\.safetensors: of another tokenizer \("),
        (["data.view.crop=edm"], r"latents-00002\.safetensors: of another transform or dataset"),
    ],
)
def test_a_shard_of_another_encoding_is_refused_by_name(
    pictures: Path, whole: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    other = encode(encoding(pictures, *overrides), tmp_path / "other")
    mixed = tmp_path / "mixed"
    shutil.copytree(whole, mixed)
    name = "train/latents-00002.safetensors"
    shutil.copy(other / name, mixed / name)
    with pytest.raises(ValueError, match=message):
        LatentsConfig(folder=str(mixed)).build("train")
    (mixed / "train" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=message):  # nor does an interrupted encoding take it over
        encode(encoding(pictures), mixed)


def test_shards_in_the_wrong_place_or_damaged_are_named(whole: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    train = LatentsConfig(folder=str(broken))
    file = broken / "train" / "latents-00003.safetensors"
    data = file.read_bytes()
    shutil.copy(broken / "train" / "latents-00001.safetensors", file)
    with pytest.raises(ValueError, match=r"latents-00003\.safetensors: is shard 1 of train"):
        train.build("train")
    shutil.copy(broken / "val" / "latents-00000.safetensors", file)
    with pytest.raises(ValueError, match=r"latents-00003\.safetensors: is shard 0 of val"):
        train.build("train")
    file.write_bytes(data[:100])
    with pytest.raises(ValueError, match=r"latents-00003\.safetensors: truncated, or not a shard"):
        train.build("train")
    save_tensors(file, {"mean": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"latents-00003\.safetensors: truncated, or not a shard"):
        train.build("train")
    file.unlink()
    with pytest.raises(ValueError, match=r"latents-00003\.safetensors: no such shard"):
        train.build("train")
    (broken / "train" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"has no manifest\.json: .*run train_scripts/encode\.py"):
        train.build("train")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tokenizer.broken_above=0"], r"train: mean of example \d+ is not finite in float32"),
        (["tokenizer.scale=1e6", "dtype=float16"], "mean of example 0 is not finite in float16"),
        (["data.view.crop=adm_random"], "crop adm_random is random, but latents are of one crop"),
        (["shard=4"], "shard must be a multiple of batch, got 4 and 3"),
    ],
)
def test_what_cannot_be_encoded(
    pictures: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encode(encoding(pictures, *overrides), tmp_path / "latents")
    assert not list(tmp_path.rglob("manifest.json"))


def test_latents_are_not_encoded_again(whole: Path, tmp_path: Path) -> None:
    data = {"name": "latents", "folder": str(whole)}
    again = build(Encoding, {"data": data, "tokenizer": {"name": "pixels"}})
    with pytest.raises(ValueError, match="is encoded already, and images are needed here"):
        encode(again, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_whose_latents_they_are() -> None:
    """Any change of config or encoder tells two tokenizers apart; the decoder's do not."""
    tokenizer = BlurConfig().build()
    same, further, other = BlurConfig().build(), BlurConfig().build(), BlurConfig().build()
    same.load_state_dict(tokenizer.state_dict())
    with torch.no_grad():
        further.decoder.weight += 1
        other.encoder.weight[0, 0, 0, 0] += 1e-6
    assert identity(tokenizer) == identity(same) == identity(further)
    assert len({identity(t) for t in (tokenizer, other, BlurConfig(scale=2.0).build())}) == 3


def test_captions_travel_in_the_header(whole: Path) -> None:
    header = read_header(whole / "train" / "latents-00000.safetensors")
    assert header["captions"][0] == ["picture 2", "the same 2"]  # 00 is held out, a/02 is next
    assert HEADER == "latents"


RECIPE: dict[str, Any] = {
    "model": {
        "name": "generator",
        "backbone": {
            "name": "dit", "size": 8, "channels": 3, "patch": 4, "width": 16, "depth": 1,
            "heads": 2, "num_classes": 2,
        },
        "process": {"name": "linear"},
        "prediction": {"name": "velocity"},
        "tokenizer": {"name": "pixels"},
        "sampler": {"steps": 2},
    },
    "objective": {"name": "denoising"},
    "optim": {"lr": 1e-3},
    "steps": 6,
    "batch": 16,
}  # fmt: skip


def trained(tmp_path: Path, name: str, data: dict[str, Any], *overrides: str) -> dict[str, Any]:
    fit(build(Recipe, override({**RECIPE, "data": data}, overrides)), tmp_path / name)
    return load_tensors(tmp_path / name / "model" / "model.safetensors")


def test_training_on_latents_is_training_on_the_images(pictures: Path, tmp_path: Path) -> None:
    """Through exact latents bit for bit, flips included, also with loader processes and resumed;
    through a stochastic tokenizer with the same noise, up to rounding.
    """
    exact = encoding(pictures, "tokenizer={name: pixels}")
    images, cached = dump(exact)["data"], str(encode(exact, tmp_path / "exact"))
    latents = {"name": "latents", "folder": cached}
    a, b = trained(tmp_path, "a", images), trained(tmp_path, "b", latents, "workers=2")
    assert all(torch.equal(a[name], b[name]) for name in a)
    unflipped = {**images, "view": {"size": 8}}
    assert any(not torch.equal(a[n], v) for n, v in trained(tmp_path, "c", unflipped).items())

    blur = ["model.tokenizer={name: 'tests.laws.coding:BlurConfig'}"]
    blur += ["model.backbone.channels=4", "model.backbone.size=4"]
    cached = str(encode(encoding(pictures), tmp_path / "blur"))
    d = trained(tmp_path, "d", images, *blur)
    e = trained(tmp_path, "e", {"name": "latents", "folder": cached}, *blur)
    for name in d:
        torch.testing.assert_close(d[name], e[name], rtol=0, atol=1e-4)


def test_a_model_with_another_tokenizer_is_refused(whole: Path, tmp_path: Path) -> None:
    latents = {"name": "latents", "folder": str(whole)}
    with pytest.raises(ValueError, match="train: latents of another tokenizer than the model's"):
        trained(tmp_path, "run", latents)
    assert not (tmp_path / "run").exists()


def test_augmentation_is_a_function_of_seed_and_position(pictures: Path, whole: Path) -> None:
    """One process or two, whole batches or parts of them, from the start or from the middle."""
    for config in (encoding(pictures).data, LatentsConfig(folder=str(whole))):
        data = config.build("train")

        def seen(order: Order, steps: range, workers: int = 0, data: Any = data) -> torch.Tensor:
            batches = (batch.x for _, batch in stream(data, order, steps, workers))
            return torch.cat(
                [getattr(x, "mean", x) if isinstance(x, Moments) else x for x in batches]
            )

        wanted = seen(Order(32, 8, 1, seed=5), range(12))
        assert torch.equal(wanted[5 * 8 :], seen(Order(32, 8, 1, seed=5), range(5, 12)))
        assert torch.equal(wanted, seen(Order(32, 8, 4, seed=5), range(12), workers=2))
        ranks = [seen(Order(32, 8, 1, 5, rank, 2), range(12)) for rank in range(2)]
        halves = [part.unflatten(0, (12, 4)) for part in ranks]
        assert torch.equal(wanted.unflatten(0, (12, 8)), torch.cat(halves, 1))
        assert not torch.equal(wanted, seen(Order(32, 8, 1, seed=6), range(12)))
        epochs = wanted.unflatten(0, (3, 32)).flatten(2).sort(1).values
        assert not torch.equal(epochs[0], epochs[1])
