"""Published files: what is taken, what is dropped and said, what is refused."""

import argparse
import json
import pickle
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from genvis import console
from genvis.backbones import BACKBONES, SCALE_BACKBONES
from genvis.checkpoint import from_pretrained, save_tensors
from genvis.config import ConfigError
from genvis.integrations import from_official, load_official_file
from genvis.integrations.official import select_weights
from genvis.random import HashKeys
from genvis.samplers.base import load_generator
from genvis.samplers.generate import generate, labelled
from genvis.tokenizers import TOKENIZERS

ROOT = Path(__file__).parents[2]
OFFICIAL_DIT: dict[str, Any] = {
    "input_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 32,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 10,
}


@pytest.fixture(scope="module")
def net() -> nn.Module:
    fields = {"size": 8, "width": 32, "depth": 2, "heads": 2, "num_classes": 10}
    return BACKBONES.build({"name": "dit", "learned_variance": True, **fields}).build()


@pytest.fixture(scope="module")
def training(net: nn.Module) -> dict[str, Any]:
    ema = {name: value.clone() for name, value in net.state_dict().items()}
    model = {name: value + 1 for name, value in ema.items()}
    args = argparse.Namespace(model="DiT-XL/2", lr=1e-4)
    return {"model": model, "ema": ema, "opt": {"state": {}}, "args": args}


def test_ema_is_taken_and_the_rest_is_named(
    training: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(training, tmp_path / "dit.pt")
    content = load_official_file(tmp_path / "dit.pt")
    assert content["args"].lr == 1e-4
    for use, other in (("ema", "model"), ("model", "ema")):
        caplog.clear()
        made = from_official("dit", content, OFFICIAL_DIT, use)
        assert all(torch.equal(v, training[use][k]) for k, v in made.state_dict().items())
        dropped = f"took '{use}' from a training checkpoint; dropped {other}, opt, args"
        assert caplog.messages == [dropped]
        assert not made.training


def test_plain_state_dicts_are_taken_whole(
    training: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_tensors(tmp_path / "dit.safetensors", training["ema"])
    torch.save(training["ema"], tmp_path / "dit.pth")
    for name in ("dit.safetensors", "dit.pth"):
        made = from_official("dit", load_official_file(tmp_path / name), OFFICIAL_DIT)
        assert all(torch.equal(v, training["ema"][k]) for k, v in made.state_dict().items())
    assert caplog.messages == []


def test_wrong_weights_are_named(training: dict[str, Any]) -> None:
    state = dict(training["ema"])
    name = next(key for key in state if key.endswith("weight"))
    del state[name]
    with pytest.raises(ValueError, match=f"1 missing \\({name}\\)"):
        from_official("dit", state, OFFICIAL_DIT)
    with pytest.raises(ConfigError, match=r"'ditt' is not one of dit.*; did you mean 'dit'"):
        from_official("ditt", state, OFFICIAL_DIT)
    with pytest.raises(ConfigError, match="not part of genvis"):
        from_official("os:system", state, OFFICIAL_DIT)


@pytest.mark.parametrize(
    ("checkpoint", "use", "expected"),
    [
        ({"model": {}, "opt": 1}, "ema", "no weights called 'ema'; it holds model, opt"),
        ({}, "ema", "no weights called 'ema'; it holds nothing"),
        ({"ema": {}}, "ema", "'ema' of the checkpoint is not a state dict: it is empty"),
        ({"ema": {"a": 1}}, "ema", "'a' is no tensor"),
        ({"ema": {}}, "emma", "use must be 'ema' or 'model', got 'emma'"),
    ],
)
def test_checkpoints_without_the_weights(checkpoint: Any, use: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        select_weights(checkpoint, use)


class Trap:
    """Unpickled without care, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def test_damaged_or_dangerous_files(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with pytest.raises(ValueError, match=r"x\.pt: no such file"):
        load_official_file(path)
    torch.save({"a": torch.ones(1000), "trap": Trap(tmp_path / "sprung")}, path)
    with pytest.raises(ValueError, match=r"x\.pt: damaged or not only weights"):
        load_official_file(path)
    torch.save({"a": torch.ones(1000)}, path)
    whole = path.read_bytes()
    for damaged in (
        whole[:-300],
        whole[:40],
        b"",
        b"text",
        pickle.dumps(Trap(tmp_path / "sprung"), protocol=2),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x\.pt: (damaged|truncated)"):
            load_official_file(path)
    torch.save([1], path)
    with pytest.raises(ValueError, match=r"x\.pt: expected a mapping of tensors, got list"):
        load_official_file(path)
    with pytest.raises(ValueError, match=r"x\.zip: expected a \.pt, \.pth or \.safetensors"):
        load_official_file(tmp_path / "x.zip")
    assert not (tmp_path / "sprung").exists()


def convert(*args: object) -> int:
    """The exit status of the script, run in this process."""
    script = runpy.run_path(str(ROOT / "train_scripts" / "convert.py"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["convert.py", *map(str, args)])
        try:
            console.run(script["main"])
        except SystemExit as done:
            return int(done.code or 0)
    return 0


def test_convert_writes_a_model_folder(
    training: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(training, tmp_path / "dit.pt")
    (tmp_path / "official.json").write_text(json.dumps(OFFICIAL_DIT))
    given = ("dit", tmp_path / "dit.pt", tmp_path / "out", "--config", tmp_path / "official.json")
    assert convert(*given) == 0
    assert "DiT" in capsys.readouterr().out
    made = from_pretrained(tmp_path / "out", BACKBONES)
    assert all(torch.equal(v, training["ema"][k]) for k, v in made.state_dict().items())
    (tmp_path / "out" / "mine.txt").write_text("x")
    assert convert(*given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert line.endswith("holds mine.txt")


VQVAE = {
    "vocab_size": 16,
    "z_channels": 4,
    "ch": 8,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "norm_groups": 4,
    "v_patch_nums": [1, 2, 4],
}
NET = {"width": 32, "depth": 1, "heads": 2, "codes": 16, "code_width": 4, "num_classes": 10}
OFFICIAL_VAR = {
    "num_classes": 10,
    "depth": 1,
    "embed_dim": 32,
    "num_heads": 2,
    "patch_nums": [1, 2, 4],
    "vocab_size": 16,
    "Cvae": 4,
}


def released_vqvae() -> dict[str, torch.Tensor]:
    """The released names of a small multi-scale tokenizer's tensors."""
    torch.manual_seed(0)
    fields = {"width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4}
    quantizer = {"codes": 16, "width": 4, "scales": [1, 2, 4]}
    given = {"name": "multi_scale_vq", "nets": fields, "quantizer": quantizer}
    state = TOKENIZERS.build(given).build().state_dict()
    ours = {k: v for k, v in state.items() if k not in ("quantize.uses", "quantize.started")}
    return {k.replace("quantize.phi.", "quantize.quant_resi.qresi_ls."): v for k, v in ours.items()}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A converted tokenizer."""
    save_tensors(tmp_path / "vae.safetensors", released_vqvae())
    (tmp_path / "vae.json").write_text(json.dumps(VQVAE))
    folder = tmp_path / "tokenizer"
    given = ("var_vqvae", tmp_path / "vae.safetensors", folder, "--config", tmp_path / "vae.json")
    assert convert(*given) == 0
    return folder


def test_a_converted_tokenizer_is_one_for_every_model(tokenizer: Path) -> None:
    net = TOKENIZERS.build({"name": "pretrained", "path": str(tokenizer)}).build()
    expected = from_official("var_vqvae", released_vqvae(), VQVAE)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    for a, b in zip(net.encode(images).tokens, expected.encode(images).tokens, strict=True):
        assert torch.equal(a, b)


def test_a_converted_network_on_a_converted_tokenizer_can_be_sampled(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = SCALE_BACKBONES.build({"name": "var", "scales": [1, 2, 4], **NET}).build()
    save_tensors(tmp_path / "var.safetensors", net.state_dict())
    (tmp_path / "var.json").write_text(json.dumps(OFFICIAL_VAR))
    given = ("var", tmp_path / "var.safetensors", tmp_path / "out")
    given = (*given, "--config", tmp_path / "var.json")
    assert convert(*given) == 2
    assert "var needs tokenizer: the folder of a converted var_vqvae" in capsys.readouterr().err
    assert convert(*given, "--tokenizer", tokenizer) == 0
    made = load_generator(tmp_path / "out")
    assert all(torch.equal(v, made.net.state_dict()[k]) for k, v in net.state_dict().items())
    keys = HashKeys.of(0, range(2))
    assert generate(made.sampler(), labelled(10, range(2)), keys).shape == (2, 3, 8, 8)

    other = SCALE_BACKBONES.build({"name": "var", "scales": [1, 2, 3], **NET}).build()
    save_tensors(tmp_path / "var.safetensors", other.state_dict())
    (tmp_path / "var.json").write_text(json.dumps({**OFFICIAL_VAR, "patch_nums": [1, 2, 3]}))
    assert convert(*given, "--tokenizer", tokenizer) == 2
    assert "scales: the backbone is for (1, 2, 3), the tokenizer for (1, 2, 4)" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["v_patch_nums", "ch_mult", "quant_resi", "vocab_size"])
def test_arguments_of_a_wrong_type_are_named(name: str) -> None:
    with pytest.raises(ConfigError):
        from_official("var_vqvae", released_vqvae(), {**VQVAE, name: "x"})
