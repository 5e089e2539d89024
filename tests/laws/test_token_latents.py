"""Tokens as data: encoded once, they train as the images would, and what is wrong is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from genvis.checkpoint import load_tensors
from genvis.config import build, config, dump, override
from genvis.data.latents import LatentsConfig
from genvis.random import HashKeys
from genvis.tokenizers.conv import ConvConfig
from genvis.tokenizers.model import TokenizerModel, TokenizerModelConfig
from genvis.tokenizers.multi_scale_vq import MultiScaleVQConfig
from genvis.tokenizers.quantizers.multi_scale import MultiScaleConfig
from genvis.training.encoding import Encoding, encode
from genvis.training.fit import fit
from genvis.training.recipe import Recipe
from genvis.types import Pyramid

SCALES, CODES = (1, 2, 4), 16
VQ = MultiScaleVQConfig(
    nets=ConvConfig(width=8, multipliers=(1, 2), blocks=1, groups=4),
    quantizer=MultiScaleConfig(codes=CODES, width=4, scales=SCALES),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures in two classes, every fourth held out, and two tokenizers."""
    root = tmp_path_factory.mktemp("tokens")
    values = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), np.uint8)
    for i, picture in enumerate(values):
        path = root / "pictures" / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    for seed, name in enumerate(("vq", "other_vq")):
        torch.manual_seed(seed)
        net = VQ.build().eval()
        net.quantize.embedding.weight.data *= 30
        TokenizerModel(TokenizerModelConfig(tokenizer=VQ), net).save_pretrained(root / name)
    return root


def encoding(home: Path, *overrides: str) -> Encoding:
    plain = {
        "data": {
            "name": "files", "root": str(home / "pictures"), "labels": "folders",
            "held_out": 4, "view": {"size": 8, "flip": True},
        },
        "tokenizer": {"name": "pretrained", "path": str(home / "vq")},
        "shard": 6,
        "batch": 3,
    }  # fmt: skip
    return build(Encoding, override(plain, overrides))


@pytest.fixture(scope="module")
def whole(home: Path) -> Path:
    return encode(encoding(home), home / "whole")


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_cached_tokens_are_those_of_the_tokenizer(home: Path, whole: Path) -> None:
    made = encoding(home)
    tokenizer = made.tokenizer.build()
    rows, keys = [7, 0, 5, 7, 6], HashKeys.of(3, range(5))
    data, cached = made.data.build("train"), LatentsConfig(folder=str(whole)).build("train")
    plain, mirrored = data[rows], data.augmented(rows, keys)
    assert not torch.equal(plain.x, mirrored.x)
    for images, tokens in ((plain, cached[rows]), (mirrored, cached.augmented(rows, keys))):
        pyramid, again = tokenizer.encode(images.x), tokenizer.pyramid(tokens.x)
        for a, b in zip(pyramid.tokens, tokens.x, strict=True):
            assert a.dtype == b.dtype == torch.int64
            assert torch.equal(a, b)
        assert torch.equal(pyramid.inputs, again.inputs)
        assert torch.equal(images.cond.label, tokens.cond.label)
    assert len(torch.cat([t.flatten() for t in cached[range(len(cached))].x]).unique()) > 4


def test_a_shard_and_its_manifest(whole: Path) -> None:
    tensors = load_tensors(whole / "train" / "latents-00000.safetensors")
    names = {f"tokens_{k}{side}" for k in range(3) for side in ("", "_flip")}
    assert set(tensors) == {*names, "label", "index"}
    assert [tensors[f"tokens_{k}"].shape[1] for k in range(3)] == [1, 4, 16]
    assert tensors["tokens_0"].dtype == torch.int32
    manifest = json.loads((whole / "train" / "manifest.json").read_text())
    data = LatentsConfig(folder=str(whole)).build("train")
    assert manifest["tokens"] == [1, 4, 16]
    assert manifest["used"] == [len(t.unique()) for t in data[range(18)].x]


def test_a_resumed_encoding_is_the_uninterrupted_one(home: Path, whole: Path) -> None:
    partial = home / "partial"
    shutil.copytree(whole, partial)
    for name in ("train/latents-00001.safetensors", "train/manifest.json", "val/manifest.json"):
        (partial / name).unlink()
    before = {path: path.stat().st_mtime_ns for path in partial.rglob("*.safetensors")}
    encode(encoding(home), partial)
    assert contents(partial) == contents(whole)
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


RECIPE: dict[str, Any] = {
    "model": {
        "name": "scale_generator",
        "backbone": {
            "name": "var", "scales": list(SCALES), "codes": CODES, "code_width": 4, "width": 16,
            "depth": 1, "heads": 2, "num_classes": 2,
        },
        "tokenizer": {"name": "pretrained"},
    },
    "objective": {
        "name": "next_scale",
        "scales": {"name": "progressive", "begin": 2, "steps": 4, "ramp": 2},
    },
    "optim": {"lr": 1e-3},
    "steps": 6,
    "batch": 8,
    "checkpoint_every": 3,
    "callbacks": [{"name": "validation", "every": 6, "count": 16}],
}  # fmt: skip


def trained(home: Path, name: str, data: dict[str, Any], *overrides: str) -> dict[str, Tensor]:
    path = f"model.tokenizer.path={home / 'vq'}"
    fit(build(Recipe, override({**RECIPE, "data": data}, [path, *overrides])), home / name)
    return load_tensors(home / name / "model" / "model.safetensors")


def test_training_on_tokens_is_training_on_the_images(home: Path, whole: Path) -> None:
    """Bit for bit, flips included; only the data line differs."""
    images = dump(encoding(home))["data"]
    a = trained(home, "a", images)
    b = trained(home, "b", {"name": "latents", "folder": str(whole)})
    assert all(torch.equal(a[name], b[name]) for name in a)
    c = trained(home, "c", {**images, "view": {"size": 8}})
    assert any(not torch.equal(a[name], c[name]) for name in a)
    lines = [(home / name / "log.jsonl").read_text().splitlines() for name in "ab"]
    logs = [json.loads(line) for found in lines for line in found if "val_loss_4x4" in line]
    assert len(logs) == 2
    assert logs[0] == logs[1]
    assert {"val_loss_mean", "val_loss_tail", "val_ema_accuracy_1x1"} <= logs[0].keys()


def test_a_model_with_another_tokenizer_is_refused(home: Path, whole: Path) -> None:
    latents = {"name": "latents", "folder": str(whole)}
    with pytest.raises(ValueError, match="train: latents of another tokenizer than the model's"):
        trained(home, "refused", latents, f"model.tokenizer.path={home / 'other_vq'}")
    assert not (home / "refused").exists()


@config
class LyingConfig:
    """Says that it has fewer codes than it uses, or has a weight that is no number."""

    codes: int = 3
    weight: float = 0.0

    def build(self) -> "Lying":
        return Lying(self)


class Lying(nn.Module):
    def __init__(self, config: LyingConfig) -> None:
        super().__init__()
        self.config, self.num_codes = config, config.codes
        self.scale = nn.Parameter(torch.tensor(config.weight))

    def encode(self, images: Tensor) -> Pyramid:
        token = (images.mean((1, 2, 3)) > 0).long()[:, None] * 3
        return Pyramid((token, token.expand(-1, 4)), torch.zeros(len(images), 4, 2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            "",
            r"train: tokens_0 of example \d+ is not one of 3 codes \(a broken tokenizer\); \d of ",
        ),
        (", weight: .nan", "the tokenizer is broken: its scale is not finite"),
    ],
)
def test_a_broken_tokenizer_is_named(home: Path, tmp_path: Path, fields: str, message: str) -> None:
    tokenizer = f"tokenizer={{name: 'tests.laws.test_token_latents:LyingConfig'{fields}}}"
    with pytest.raises(ValueError, match=message):
        encode(encoding(home, tokenizer), tmp_path / "latents")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_every_code_may_be_used(home: Path, tmp_path: Path) -> None:
    tokenizer = "tokenizer={name: 'tests.laws.test_token_latents:LyingConfig', codes: 4}"
    folder = encode(encoding(home, tokenizer), tmp_path / "latents")
    tokens = LatentsConfig(folder=str(folder)).build("train")[range(18)].x[0]
    assert set(tokens.flatten().tolist()) == {0, 3}
