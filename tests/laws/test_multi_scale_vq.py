"""VAR's tokenizer: tokens, sums and images are one thing told three ways."""

import pytest
import torch

from genvis.integrations.official import from_official
from genvis.random import HashKeys
from genvis.tokenizers.conv import ConvConfig
from genvis.tokenizers.multi_scale_vq import MultiScaleVQ, MultiScaleVQConfig
from genvis.tokenizers.quantizers.multi_scale import MultiScaleConfig, phi_of_scale

SMALL = MultiScaleVQConfig(
    nets=ConvConfig(width=8, multipliers=(1, 2), blocks=1, groups=4),
    quantizer=MultiScaleConfig(codes=32, width=4, scales=(1, 2, 4)),
)


@pytest.fixture(scope="module")
def net() -> MultiScaleVQ:
    torch.manual_seed(0)
    made = SMALL.build().eval()
    f = made.features(images(16))
    for step in range(3):
        made.learn(f, HashKeys.of(0, [step]))
    return made


def images(n: int) -> torch.Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_training_and_decoding_add_up_the_same_map(net: MultiScaleVQ) -> None:
    f = net.features(images(3))
    trained, pyramid = net.quantize(f), net.encode(images(3))
    f_hat = net.blank(3)
    for k, tokens in enumerate(pyramid.tokens):
        assert tokens.shape == (3, net.scales[k] ** 2)
        before = f_hat.clone()
        following = net.accumulate(f_hat, tokens, k)
        assert torch.equal(f_hat, before)
        f_hat = following
        torch.testing.assert_close(f_hat, trained.sums[k])
    torch.testing.assert_close(trained.f_hat, f_hat)
    whole = net(images(3)).images.clamp(-1, 1)
    torch.testing.assert_close(net.previews(pyramid.tokens)[-1], whole)
    torch.testing.assert_close(net.decode(f_hat), whole)


def test_inputs_are_what_the_scales_below_leave(net: MultiScaleVQ) -> None:
    pyramid = net.encode(images(2))
    assert pyramid.inputs.shape == (2, 4 + 16, 4)
    f_hat = net.accumulate(net.blank(2), pyramid.tokens[0], 0)
    assert torch.equal(pyramid.inputs[:, :4], net.next_input(f_hat, 1))
    f_hat = net.accumulate(f_hat, pyramid.tokens[1], 1)
    assert torch.equal(pyramid.inputs[:, 4:], net.next_input(f_hat, 2))


def test_a_row_does_not_depend_on_its_neighbours(net: MultiScaleVQ) -> None:
    alone, together = net.encode(images(4)[2:3]), net.encode(images(4))
    for one, all_rows in zip(alone.tokens, together.tokens, strict=True):
        assert torch.equal(one, all_rows[2:3])


def test_every_scale_gets_codes_of_its_own(net: MultiScaleVQ) -> None:
    """The codebook starts at residuals of all scales, so that the coarsest has several codes."""
    tokens = net.encode(images(16)).tokens
    assert len(tokens[0].unique()) >= 4
    torch.manual_seed(0)
    untaught = SMALL.build().eval().encode(images(16)).tokens
    assert len(untaught[0].unique()) < len(tokens[0].unique())


def test_revived_codes_come_from_coarse_scales_too() -> None:
    torch.manual_seed(0)
    quantizer = MultiScaleConfig(codes=30, width=4, scales=(1, 2, 8), revive=0.5).build()
    f = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    quantizer.learn(f, HashKeys.of(0, [0]))
    dead = torch.ones(30, dtype=torch.bool)
    with torch.no_grad():
        parts = [z for z, _ in quantizer.residuals(f)]
        quantizer.place(dead, parts, HashKeys.of(0, [1]))
    codes = quantizer.embedding.weight[:, None]
    found = [(codes == z.flatten(0, 1)).all(2).any(1) for z in parts]
    assert [int(mine.sum()) for mine in found] == [10, 10, 10]


def test_a_large_batch_does_not_find_its_new_codes_dead() -> None:
    torch.manual_seed(0)
    quantizer = MultiScaleConfig(codes=8, width=4, scales=(1, 2, 8)).build()
    f = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(4))  # 138 a code
    quantizer.learn(f, HashKeys.of(0, [0]))
    found = quantizer.embedding.weight.clone()
    quantizer.learn(f, HashKeys.of(0, [1]))
    assert torch.equal(quantizer.embedding.weight, found)


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        (1, [0]),
        (4, [0, 1, 2, 3]),
        (5, [0, 1, 2, 2, 3]),
        (6, [0, 0, 1, 2, 3, 3]),
        (7, [0, 0, 1, 2, 2, 3, 3]),
        (8, [0, 0, 1, 1, 2, 2, 3, 3]),
        (10, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),
    ],
)
def test_scales_share_convolutions_as_released(scales: int, expected: list[int]) -> None:
    assert [*phi_of_scale(scales, 4)] == expected


def test_the_released_size() -> None:
    with torch.device("meta"):
        net = MultiScaleVQConfig().build()
    counts = {
        name: sum(p.numel() for p in part.parameters()) for name, part in net.named_children()
    }
    assert counts["encoder"] == 44_107_872
    assert counts["decoder"] == 64_653_923
    assert counts["quantize"] == 168_064
    assert sum(counts.values()) == 108_948_355


def test_a_released_layout_is_loaded_whole_or_not_at_all(net: MultiScaleVQ) -> None:
    official = {
        "vocab_size": 32, "z_channels": 4, "ch": 8, "ch_mult": [1, 2], "num_res_blocks": 1,
        "norm_groups": 4, "v_patch_nums": [1, 2, 4], "share_quant_resi": 4,
    }  # fmt: skip
    released = {
        name.replace("quantize.phi.", "quantize.quant_resi.qresi_ls."): value
        for name, value in net.state_dict().items()
        if name not in ("quantize.uses", "quantize.started")
    }
    released["quantize.ema_vocab_hit_SV"] = torch.zeros(3, 32)
    loaded = from_official("var_vqvae", released, official)
    assert isinstance(loaded, MultiScaleVQ)
    for a, b in zip(loaded.encode(images(2)).tokens, net.encode(images(2)).tokens, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match=r"1 missing \(encoder\.conv_in\.bias\)"):
        from_official(
            "var_vqvae",
            {k: v for k, v in released.items() if k != "encoder.conv_in.bias"},
            official,
        )
    with pytest.raises(ValueError, match="no argument 'chanels'"):
        from_official("var_vqvae", released, {**official, "chanels": 8})


def test_images_of_another_size_are_refused(net: MultiScaleVQ) -> None:
    with pytest.raises(ValueError, match=r"images must be \(B, 3, 8, 8\), as scales end at 4"):
        net.encode(torch.zeros(1, 3, 16, 16))
