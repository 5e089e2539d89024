"""Latents of mean 0 and standard deviation 1 for every channel, whatever the tokenizer made."""

from typing import Any

import pytest
import torch
from torch import nn

from genvis.config import ConfigError
from genvis.random import HashKeys
from genvis.tokenizers import TOKENIZERS
from genvis.tokenizers.scaled import measure
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


def test_numbers_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match="std must be positive"):
        scaled(std=[1.0, 0.0, 1.0])
    with pytest.raises(ValueError, match="2 numbers, latents 3"):
        scaled(mean=[0.0, 1.0]).encode(torch.zeros(1, 3, 8, 8))
