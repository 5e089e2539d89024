"""Latents of mean 0 and standard deviation 1 for every channel, whatever the tokenizer made."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from genvis.config import ConfigError, build
from genvis.data.digits import DigitsConfig
from genvis.data.latents import identity
from genvis.random import HashKeys
from genvis.tokenizers import TOKENIZERS
from genvis.tokenizers.model import PretrainedConfig, TokenizerModelConfig
from genvis.tokenizers.scaled import measure
from genvis.training.scaling import Measuring
from genvis.types import Moments

TOWER = {"width": 24, "depth": 1, "heads": 2}
VITOK = {"name": "vitok", "size": 8, "patch": 4, "code": 3, "encoder": TOWER, "decoder": TOWER}


def scaled(**fields: Any) -> Any:
    torch.manual_seed(0)
    made = TOKENIZERS.build({"name": "scaled", "tokenizer": VITOK, **fields}).build().eval()
    for parameter in made.parameters():
        parameter.data += nn.init.normal_(torch.empty_like(parameter), std=0.1)
    return made


def test_measured_numbers_make_latents_unit_scaled() -> None:
    batches = [HashKeys.of(0, range(n)).uniform((3, 8, 8)).float() * 2 - 1 for n in (50, 14)]
    plain = scaled()
    mean, std = measure(plain.encode(batch) for batch in batches)
    made = scaled(mean=list(mean), std=list(std))
    found = [made.encode(batch) for batch in batches]
    again = measure(found)
    assert again[0] == pytest.approx([0, 0, 0], abs=1e-5)
    assert again[1] == pytest.approx([1, 1, 1], abs=1e-5)
    expected = plain.tokenizer.decode(plain.encode(batches[1]).mode())
    torch.testing.assert_close(made.decode(found[1].mode()), expected, atol=1e-4, rtol=1e-4)


def test_the_spread_counts_what_posteriors_add() -> None:
    keys = HashKeys.of(0, range(4000))
    moments = Moments(1 + 3 * keys.normal((2, 1, 1)), torch.full((4000, 2, 1, 1), 4.0))
    mean, std = measure([moments])
    assert mean == pytest.approx([1, 1], abs=0.2)
    assert std == pytest.approx([5, 5], rel=0.03)
    with pytest.raises(ValueError, match="at least 2 latents, got 0"):
        measure([])


def test_one_number_serves_all_channels() -> None:
    x = torch.zeros(1, 3, 8, 8)
    raw, made = scaled().encode(x), scaled(mean=0.5, std=2.0).encode(x)
    torch.testing.assert_close(made.mean, (raw.mean - 0.5) / 2)
    assert raw.std is not None
    torch.testing.assert_close(made.std, raw.std / 2)


def test_a_folder_of_the_same_weights_with_measured_numbers(tmp_path: Path) -> None:
    model = build(TokenizerModelConfig, {"tokenizer": VITOK}).build()
    model.net.eval()
    made = build(Measuring, {"data": {"name": "digits"}, "count": 90, "batch": 40}).scaled(model)
    made.save_pretrained(tmp_path / "scaled")
    found = PretrainedConfig(path=str(tmp_path / "scaled")).build()
    images = DigitsConfig().build("train")[range(90)].x
    mean, std = measure([found.encode(images)])
    assert mean == pytest.approx([0, 0, 0], abs=1e-5)
    assert std == pytest.approx([1, 1, 1], abs=1e-4)
    again = found.decode(found.encode(images[:4]).mode())
    expected = model.net.decode(model.net.encode(images[:4]).mode())
    torch.testing.assert_close(again, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="scaled already"):
        build(Measuring, {"data": {"name": "digits"}}).scaled(made)


def test_further_training_of_a_decoder_keeps_latents_valid() -> None:
    made = scaled()
    before = identity(made)
    for parameter in made.decoder_parameters():
        parameter.data += 1
    assert identity(made) == before
    next(p for n, p in made.named_parameters() if "encoder" in n).data += 1
    assert identity(made) != before


def test_latents_do_not_depend_on_where_the_tokenizer_was_kept(tmp_path: Path) -> None:
    model = build(TokenizerModelConfig, {"tokenizer": VITOK}).build()
    names = []
    for name in ("here", "there"):
        model.save_pretrained(tmp_path / name)
        inner = {"name": "pretrained", "path": str(tmp_path / name)}
        made = TOKENIZERS.build({"name": "scaled", "tokenizer": inner, "std": 2.0}).build()
        names.append(identity(made))
        model.net.tubelet_decode.proj.weight.data += 1  # of the decoder
    assert names[0] == names[1] != identity(scaled(std=2.0))


def test_only_moments_can_be_scaled() -> None:
    nets = {"width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4}
    quantizer = {"codes": 16, "width": 4, "scales": [1, 2, 4]}
    vq = {"name": "multi_scale_vq", "nets": nets, "quantizer": quantizer}
    model = build(TokenizerModelConfig, {"tokenizer": vq}).build()
    with pytest.raises(ValueError, match="only Moments can be scaled, not Pyramid"):
        build(Measuring, {"data": {"name": "digits"}, "count": 8}).scaled(model)
    with pytest.raises(ValueError, match="only Moments can be scaled, not Pyramid"):
        TOKENIZERS.build({"name": "scaled", "tokenizer": vq}).build().encode(
            torch.zeros(1, 3, 8, 8)
        )


def test_numbers_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match="std must be positive"):
        scaled(std=[1.0, 0.0, 1.0])
    with pytest.raises(ValueError, match="2 numbers, latents 3"):
        scaled(mean=[0.0, 1.0]).encode(torch.zeros(1, 3, 8, 8))
