"""Tokenizers are trained, saved and used like every model; adversarial stages resume exactly."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from genvis.checkpoint import load_tensors
from genvis.config import ConfigError, build, dump, override, write_yaml
from genvis.data.digits import DigitsConfig
from genvis.models import fingerprint
from genvis.objectives.adversary import Adversary
from genvis.samplers.generator import Generator, GeneratorConfig
from genvis.tokenizers.model import PretrainedConfig, TokenizerModel
from genvis.training.encoding import Encoding, encode
from genvis.training.fit import fit
from genvis.training.journal import read_journal
from genvis.training.recipe import Recipe
from tests.launch import launch
from tests.laws.conftest import GENERATOR
from tests.laws.stopping import Crash

NETS = {"width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4}
TINY: dict[str, Any] = {
    "model": {
        "name": "tokenizer",
        "tokenizer": {
            "name": "multi_scale_vq",
            "nets": NETS,
            "quantizer": {"codes": 32, "width": 4, "scales": [1, 2, 4]},
        },
    },
    "data": {"name": "digits"},
    "objective": {
        "name": "reconstruction",
        "l1": 0.2,
        "perceptual": {"name": "classifier", "source": "digits-cnn-v1"},
    },
    "optim": {"lr": 3e-3},
    "steps": 6,
    "batch": 16,
    "ema": 0.5,
    "log_every": 2,
    "checkpoint_every": 2,
    "callbacks": [{"name": "validation", "every": 3, "count": 32}],
}
ADVERSARY = {"weight": 0.1, "discriminator": {"width": 8, "halvings": 1}, "start": 2, "ramp": 2}
ADVERSARIAL = override(
    {**TINY, "players": {"discriminator": {"lr": 1e-3}}},
    [f"objective.adversary={ADVERSARY}", "objective.decoder_only=true"],
)


def recipe(data: dict[str, Any], *overrides: str) -> Recipe:
    return build(Recipe, override(data, overrides))


def saved(run: Path) -> dict[str, torch.Tensor]:
    return load_tensors(run / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "run"
    fit(recipe(TINY), folder)
    return folder


@pytest.mark.parametrize("data", [TINY, ADVERSARIAL], ids=["one player", "two players"])
@pytest.mark.parametrize("step", [3, 4])
def test_resumed_equals_uninterrupted(tmp_path: Path, data: dict[str, Any], step: int) -> None:
    """The codebook that learns outside of gradients and both players, to the last bit."""
    data = override(data, ["objective.decoder_only=false"])
    fit(recipe(data), tmp_path / "whole")
    flag = tmp_path / "flag"
    flag.touch()
    crash = {"name": "tests.laws.stopping:CrashOnce", "at": step, "flag": str(flag)}
    once = build(Recipe, {**data, "callbacks": [*data["callbacks"], crash]})
    with pytest.raises(Crash):
        fit(once, tmp_path / "run")
    fit(once, tmp_path / "run")
    a, b = saved(tmp_path / "whole"), saved(tmp_path / "run")
    assert all(torch.equal(a[name], b[name]) for name in a)
    logs = [
        [{k: v for k, v in line.items() if k != "images_per_s"} for line in read_journal(folder)]
        for folder in (tmp_path / "whole", tmp_path / "run")
    ]
    assert logs[0] == logs[1]
    assert ("discriminator_loss" in logs[0][0]) == ("players" in data)


def test_accumulation_teaches_the_codebook_the_same(tmp_path: Path) -> None:
    for name, accumulate in (("one", 1), ("four", 4)):
        fit(recipe(TINY, f"accumulate={accumulate}", "callbacks=[]"), tmp_path / name)
    a, b = saved(tmp_path / "one"), saved(tmp_path / "four")
    assert torch.equal(a["quantize.started"], torch.tensor(True))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=2e-3)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """The codebook learns from the rows of both, and so does the discriminator."""
    data = override(ADVERSARIAL, ["objective.decoder_only=false", "callbacks=[]", "steps=4"])
    (tmp_path / "recipe.yaml").write_text(write_yaml(dump(recipe(data))))
    launch(2, "train_scripts/train.py", tmp_path / "recipe.yaml", "--out", tmp_path / "two")
    fit(recipe(data), tmp_path / "one")
    a, b = saved(tmp_path / "one"), saved(tmp_path / "two")
    assert torch.equal(a["quantize.started"], torch.tensor(True))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=2e-3)


def test_training_a_decoder_leaves_every_token_as_it_was(first: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    fit(recipe(ADVERSARIAL, f"init={first}"), second)
    images = DigitsConfig(size=8).build("val")[range(32)].x
    before, after = (TokenizerModel.from_pretrained(run).net for run in (first, second))
    for a, b in zip(before.encode(images).tokens, after.encode(images).tokens, strict=True):
        assert torch.equal(a, b)
    a, b = saved(first), saved(second)
    moved = {name.partition(".")[0] for name in a if not torch.equal(a[name], b[name])}
    assert moved == {"decoder", "post_quant_conv"}


def test_an_adversary_matters_from_its_start() -> None:
    weights = [Adversary(weight=0.4, start=2, ramp=2).weight_at(step) for step in range(5)]
    assert weights == [0, 0, 0.2, 0.4, 0.4]
    assert Adversary(weight=0.4).weight_at(0) == 0.4


def test_players_and_optimizers_must_match(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="each of the objective's: discriminator; got none"):
        fit(recipe(ADVERSARIAL, "players={}"), tmp_path / "run")
    with pytest.raises(ValueError, match="each of the objective's: none; got judge"):
        fit(recipe(TINY, "players={judge: {}}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_gives_back_the_tokenizer(first: Path) -> None:
    model = TokenizerModel.from_pretrained(first)
    assert dump(model.config.tokenizer) == dump(recipe(TINY).model.tokenizer)
    assert all(torch.equal(saved(first)[k], v) for k, v in model.net.state_dict().items())
    with pytest.raises(ConfigError, match="holds a tokenizer, expected a generator"):
        Generator.from_pretrained(first)


def test_a_generator_keeps_the_hash_of_its_tokenizer(tmp_path: Path) -> None:
    quantizer = {"name": "fsq", "levels": [5, 5]}
    discrete = {"name": "discrete", "nets": NETS, "quantizer": quantizer, "channels": 8}
    fit(recipe(TINY, f"model.tokenizer={discrete}", "callbacks=[]"), tmp_path / "fsq")
    backbone = {**GENERATOR["backbone"], "size": 4, "patch": 1, "channels": 2}
    tokenizer = {"name": "pretrained", "path": str(tmp_path / "fsq")}
    chosen = build(GeneratorConfig, {**GENERATOR, "backbone": backbone, "tokenizer": tokenizer})
    chosen.build().save_pretrained(tmp_path / "generator")
    found = Generator.from_pretrained(tmp_path / "generator")
    assert found.config.tokenizer.sha256 == fingerprint(tmp_path / "fsq")
    images = DigitsConfig(size=8).build("val")[[0, 1]].x
    assert found.tokenizer.encode(images).mean.shape == (2, 2, 4, 4)
    assert found.tokenizer.decode(torch.zeros(2, 2, 4, 4)).shape == (2, 3, 8, 8)

    file = tmp_path / "fsq" / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(ValueError, match=r"the tokenizer in .* has changed"):
        Generator.from_pretrained(tmp_path / "generator")


def test_a_missing_tokenizer_is_named() -> None:
    with pytest.raises(ValueError, match="no such folder"):
        PretrainedConfig(path="runs/nowhere/at/all").build()


def test_a_tokenizer_that_is_gone_is_not_called_changed(first: Path, tmp_path: Path) -> None:
    kept = PretrainedConfig(path=str(first))
    gone = replace(kept, path=str(tmp_path / "gone"))
    with pytest.raises(ValueError, match=r"gone: no model folder, but this config needs"):
        gone.build()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.tokenizer={name: pixels}"], "Pixels has nothing to train"),
        (["model.tokenizer={name: pretrained, path: FIRST}"], "MultiScaleVQ has nothing to train"),
        ([f"model={ {'name': 'generator', **GENERATOR} }"], "DiT has nothing to train"),
        (["data={name: latents, folder: ENCODED}"], "a TokenizerModel learns from images"),
    ],
)
def test_what_cannot_be_trained_is_said_before_the_run(
    first: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    data = {"data": {"name": "digits"}, "tokenizer": {"name": "pixels"}, "shard": 64}
    encode(build(Encoding, data), tmp_path / "encoded")
    places = {"FIRST": str(first), "ENCODED": str(tmp_path / "encoded")}
    for name, place in places.items():
        overrides = [text.replace(name, place) for text in overrides]
    with pytest.raises(ValueError, match=message):
        fit(recipe(TINY, *overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_scaled_tokenizer_can_be_trained_further(tmp_path: Path) -> None:
    quantizer = {"name": "vq", "codes": 8}
    discrete = {"name": "discrete", "nets": NETS, "quantizer": quantizer, "channels": 8}
    scaled = {"name": "scaled", "tokenizer": discrete, "std": 2.0}
    fit(recipe(TINY, f"model.tokenizer={scaled}", "callbacks=[]"), tmp_path / "run")
    assert saved(tmp_path / "run")["tokenizer.quantize.started"]
