"""Quantizers: an index is a code's name, gradients pass, codebooks stay alive."""

from typing import Any

import pytest
import torch

from genvis.random import HashKeys
from genvis.tokenizers import QUANTIZERS
from genvis.tokenizers.quantizers.bernoulli import BernoulliConfig
from genvis.tokenizers.quantizers.binary import BSQConfig, LFQConfig
from genvis.tokenizers.quantizers.quantized import (
    QuantizerConfig,
    histogram,
    rotated,
    statistics,
)
from genvis.tokenizers.quantizers.scalar import FSQConfig
from genvis.tokenizers.quantizers.vector import EMAVQConfig, VQConfig
from genvis.training.ema import EMA

SMALL: dict[str, QuantizerConfig] = {
    "vq": VQConfig(codes=12, width=4),
    "ema_vq": EMAVQConfig(codes=12, width=4, normalize=False),
    "fsq": FSQConfig(levels=(4, 3, 5)),
    "lfq": LFQConfig(bits=3, codebooks=2, inv_temperature=2.0),
    "bsq": BSQConfig(bits=6, group=3, beta=0.25, inv_temperature=2.0),
    "bernoulli": BernoulliConfig(bits=6, subcodes=2, inputs=5, width=4, certainty=0.1),
}


def made(config: QuantizerConfig, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return config.build()


def vectors(config: QuantizerConfig, rows: int = 6) -> torch.Tensor:
    return torch.randn(rows, 3, 5, config.inputs, generator=torch.Generator().manual_seed(1))


def test_every_quantizer_is_tested() -> None:
    assert SMALL.keys() == {*QUANTIZERS}


@pytest.mark.parametrize("name", SMALL)
def test_indices_say_all_that_a_decoder_gets(name: str) -> None:
    config = SMALL[name]
    quantizer, f = made(config), vectors(config)
    q = quantizer(f)
    assert q.z.shape == (6, 3, 5, config.width)
    assert q.indices.dtype == torch.int64
    assert q.indices.min() >= 0
    assert q.indices.max() < config.num_codes
    assert q.loss.shape == (6,)
    torch.testing.assert_close(quantizer.codes(q.indices), q.z, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", SMALL)
def test_every_code_has_an_index_of_its_own(name: str) -> None:
    config = SMALL[name]
    quantizer = made(config)
    tokens = torch.arange(config.num_codes)
    several = quantizer(vectors(config)).indices.ndim > 3
    codes = quantizer.codes(tokens[:, None].expand(-1, 2) if several else tokens)
    assert len(codes.unique(dim=0)) == config.num_codes


@pytest.mark.parametrize("name", ["vq", "lfq", "bsq"])
def test_codes_are_their_own_nearest(name: str) -> None:
    config = SMALL[name]
    quantizer = made(config)
    q = quantizer(vectors(config))
    assert torch.equal(quantizer(q.z).indices, q.indices)


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_what_is_quantized(name: str) -> None:
    config = SMALL[name]
    quantizer, f = made(config), vectors(config).requires_grad_()
    w = torch.randn(config.width, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((quantizer(f).z * w).sum(), f)
    assert gradient.isfinite().all()
    assert (gradient.abs().flatten(0, 2).sum(0) > 0).all()


def test_straight_through_is_the_identity_backwards() -> None:
    for config in (VQConfig(codes=12, width=4, normalize=False), LFQConfig(bits=4)):
        f = vectors(config).requires_grad_()
        w = torch.randn(f.shape, generator=torch.Generator().manual_seed(2))
        (gradient,) = torch.autograd.grad((made(config)(f).z * w).sum(), f)
        assert torch.equal(gradient, w)


def test_the_rotation_turns_gradients_like_the_vectors() -> None:
    """A gradient along the code comes back along the feature, with the code's length."""
    f = torch.tensor([[3.0, 0.0]], requires_grad=True)
    e = torch.tensor([[0.0, 2.0]])
    (gradient,) = torch.autograd.grad((rotated(f, e) * e).sum(), f)
    torch.testing.assert_close(gradient, torch.tensor([[2.0 * 2 / 3, 0.0]]))


def test_scalars_reach_their_end_levels() -> None:
    for symmetric in (False, True):
        config = FSQConfig(levels=(4, 3, 5), symmetric=symmetric)
        ends = made(config)(torch.tensor([-1e4, 1e4])[:, None].expand(2, 3))
        assert ends.indices.tolist() == [0, 4 * 3 * 5 - 1]


def test_bits_are_drawn_with_their_probability_from_keys_alone() -> None:
    quantizer = made(BernoulliConfig(bits=8, subcodes=1, inputs=3, width=4))
    f = vectors(BernoulliConfig(inputs=3), rows=1).expand(4000, -1, -1, -1)
    mean, keys = quantizer.mean(f), HashKeys.of(0, range(4000))
    bits = quantizer.bits(mean, keys)
    error = (mean * (1 - mean) / 4000).sqrt()[0]
    assert ((bits.mean(0) - mean[0]).abs() < 5 * error).all()
    assert torch.equal(quantizer.bits(mean[:2], HashKeys.of(0, range(2))), bits[:2])


@pytest.mark.parametrize("kind", [VQConfig, EMAVQConfig])
def test_a_codebook_starts_where_its_features_are(kind: type[VQConfig]) -> None:
    config = kind(codes=32, width=4, normalize=False)
    quantizer = made(config)
    f = 0.01 * vectors(config, rows=64) + 7
    before = statistics(quantizer(f).indices, 32)["usage"]
    quantizer.learn(f, HashKeys.of(0, [0]))
    after = statistics(quantizer(f).indices, 32)["usage"]
    assert before <= 3 / 32
    assert after > 0.9


@pytest.mark.parametrize("kind", [VQConfig, EMAVQConfig])
def test_a_dead_code_becomes_a_feature(kind: type[VQConfig]) -> None:
    config = kind(codes=8, width=4, normalize=False, decay=0.5, revive=0.1)
    quantizer, f = made(config), vectors(config, rows=32)
    quantizer.learn(f, HashKeys.of(0, [0]))
    with torch.no_grad():
        quantizer.embedding.weight[3] = 1e3
    if kind is EMAVQConfig:
        quantizer.sums[3] = 1e3 * quantizer.uses[3]
    for step in range(10):
        quantizer.learn(f, HashKeys.of(0, [step]))
    assert quantizer.embedding.weight[3].abs().max() < 10
    assert statistics(quantizer(f).indices, 8)["usage"] == 1


@pytest.mark.parametrize("kind", [VQConfig, EMAVQConfig])
def test_a_large_batch_does_not_find_its_new_codes_dead(kind: type[VQConfig]) -> None:
    config = kind(codes=4, width=4, normalize=False)
    quantizer, f = made(config), torch.eye(4).repeat(100, 1)[None]  # 100 features a code
    for step in range(5):
        quantizer.learn(f, HashKeys.of(0, [step]))
    used = histogram(quantizer(f).indices, 4) > 0
    assert (quantizer.uses[used] > quantizer.least(f[0])).all()


def test_moving_counts_keep_their_total() -> None:
    config = EMAVQConfig(codes=8, width=4, revive=0.0)
    quantizer, f = made(config), vectors(config)
    quantizer.started.fill_(True)
    quantizer.uses.fill_(6 * 3 * 5 / 8)
    for step in range(3):
        quantizer.learn(f, HashKeys.of(0, [step]))
    assert quantizer.uses.sum() == pytest.approx(90)


def test_an_average_of_weights_copies_a_codebook() -> None:
    quantizer = made(SMALL["vq"])
    ema = EMA(quantizer, 0.9)
    with torch.no_grad():
        quantizer.embedding.weight.add_(1)
    ema.update(quantizer, 100)
    assert torch.equal(ema.net.embedding.weight, quantizer.embedding.weight)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (FSQConfig, {"levels": (2, 3)}, "levels must each be at least 3"),
        (LFQConfig, {"bits": 18}, "bits must be 1..14"),
        (BSQConfig, {"bits": 10, "group": 4}, "divisible by group"),
        (BernoulliConfig, {"bits": 10, "subcodes": 3}, "subcodes must divide the 10 bits"),
        (VQConfig, {"decay": 1.0}, r"decay must be in \[0, 1\)"),
    ],
)
def test_what_cannot_be_is_refused(kind: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**fields)
