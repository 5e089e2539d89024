"""What ViTok's paper says of its sizes, and what its positions, codes and stages promise."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from genvis.config import ConfigError
from genvis.integrations.official import from_official
from genvis.nn.rotary import axial, rotate
from genvis.random import HashKeys
from genvis.tokenizers import TOKENIZERS
from genvis.tokenizers.patches import patchify, unpatchify
from genvis.tokenizers.towers import Tower
from genvis.tokenizers.vitok import SIZES, ViTokConfig
from genvis.tokenizers.vitok_v2 import ViTokV2Config

SMALL = ViTokConfig(
    size=(8, 16),
    patch=4,
    code=3,
    encoder=Tower(width=24, depth=1, heads=2),
    decoder=Tower(width=36, depth=2, heads=3),
)
V2 = ViTokV2Config(size=(8, 16), patch=4, code=3, encoder=SMALL.encoder, decoder=SMALL.decoder)


STATE = {"bias": torch.zeros(1)}


def noisy(config: Any) -> Any:
    torch.manual_seed(0)
    net = config.build()
    for parameter in net.parameters():
        parameter.data += nn.init.normal_(torch.empty_like(parameter), std=0.1)
    return net.eval()


def images(config: Any = SMALL, rows: int = 2, size: tuple[int, ...] | None = None) -> Tensor:
    clip = (config.frames,) if getattr(config, "frames", 1) > 1 else ()
    shape = (3, *clip, *(size or config.height_width))
    return HashKeys.of(3, range(rows)).uniform(shape).float() * 2 - 1


def millions(config: Any, *parts: str) -> float:
    with torch.device("meta"):
        net = config.build()
    chosen = [net.get_submodule(part) for part in parts] or [net]
    return sum(p.numel() for part in chosen for p in part.parameters()) / 1e6


# table 1 of the paper, millions of parameters: S and B are printed 0.3% and 0.1% above the released
# layers, whose count its totals for L and S-L agree with
@pytest.mark.parametrize(("size", "published"), [("S", 43.3), ("B", 85.8), ("L", 383.7)])
def test_a_tower_has_the_published_parameters(size: str, published: float) -> None:
    config = ViTokConfig.named(f"{size}-{size}/16", floats=4096)
    for parts in (
        ("tubelet_embed", "encoder", "encoder_to_code"),
        ("code_to_decoder", "decoder", "tubelet_decode"),
    ):
        assert millions(config, *parts) == pytest.approx(published, rel=4e-3)


@pytest.mark.parametrize(
    ("name", "published", "tolerance"),
    [("vitok_s_b_16", 129.0, 0.2), ("vitok_s_l_16", 426.8, 0.05)],  # table 3
)
def test_presets_have_the_published_parameters(
    name: str, published: float, tolerance: float
) -> None:
    assert millions(TOKENIZERS.build(name)) == pytest.approx(published, abs=tolerance)


def test_one_width_for_both_towers_has_the_parameters_of_the_release() -> None:
    encoder = replace(SIZES["S"], width=1152, heads=16)
    config = replace(ViTokConfig.named("S-L/16", floats=4096), encoder=encoder)
    assert millions(config) == pytest.approx(480.3, abs=0.05)


@pytest.mark.parametrize(
    ("name", "fields", "published"),
    [
        ("S-B/16", {}, 34.8),  # tables 1 and 3
        ("S-L/16", {}, 113.4),
        ("S-B/16", {"size": 512}, 160.8),  # table 4
        ("S-B/4x8", {"size": 128}, 160.8),  # table 5
    ],
)
def test_presets_have_the_published_flops(name: str, fields: Any, published: float) -> None:
    config = ViTokConfig.named(name, floats=16_384, **fields)
    assert round(config.flops / 1e9, 1) == published


@pytest.mark.parametrize(("size", "published"), [("S", 11.6), ("B", 23.1), ("L", 101.8)])
def test_a_tower_has_the_published_flops(size: str, published: float) -> None:
    config = ViTokConfig.named(f"{size}-{size}/16", floats=4096)
    assert config.flops / 2e9 == pytest.approx(published, abs=0.06)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        replace(SMALL, variational=False),
        replace(SMALL, frames=4, tubelet=2, positions="sincos3d"),
        replace(SMALL, tokens=5, positions="decoder"),
    ],
)
def test_flops_are_those_of_the_layers(config: ViTokConfig) -> None:
    net = config.build()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.decode(net.encode(images(config, rows=1)).mode())
    assert counter.get_total_flops() == 2 * config.flops


@pytest.mark.parametrize(
    ("name", "encoder", "decoder", "total"),
    [("Ld4-Ld24/1x16x64", 51, 303, 354), ("Td4-T/1x32x64", 463, 4546, 5010)],
)
def test_the_second_version_has_the_published_parameters(
    name: str, encoder: float, decoder: float, total: float
) -> None:
    config = ViTokV2Config.named(name)
    counts = [
        millions(config, "patch_embed", "encoder_blocks", "to_code"),
        millions(config, "decoder_embed", "decoder_blocks", "to_pixels"),
    ]
    assert counts == [pytest.approx(encoder, rel=0.01), pytest.approx(decoder, rel=0.01)]
    assert sum(counts) == pytest.approx(total, rel=0.01)


def test_names_say_sizes_and_floats() -> None:
    config = ViTokConfig.named("S-L/16", floats=8192)
    assert (config.encoder, config.decoder, config.code) == (SIZES["S"], SIZES["L"], 32)
    assert config.floats == 8192
    assert config.shape == (32, 16, 16)
    video = ViTokConfig.named("Sd2-B/4x8x16", size=128)
    assert (video.frames, video.tubelet, video.patch, video.encoder.depth) == (16, 4, 8, 2)
    assert video.shape == (16, 4, 16, 16)
    assert video.positions == "sincos3d"
    for name in (name for name in TOKENIZERS if name.startswith("vitok_s_")):
        _, encoder, decoder, block = name.split("_")
        preset = TOKENIZERS.build(name)
        tubelet, _, patch = block.rpartition("x")
        assert (preset.encoder, preset.decoder) == (SIZES[encoder.upper()], SIZES[decoder.upper()])
        assert (preset.tubelet, preset.patch) == (int(tubelet or 1), int(patch))


@pytest.mark.parametrize(
    ("name", "floats", "message"),
    [
        ("S-B", None, "not of the form"),
        ("S-Q/16", None, "'Q' is not one of XXS"),
        ("S-B/16", None, "leaves c open"),
        ("S-B/16", 100, "256 tokens, which cannot hold E = 100"),
        ("S-B/1x16x8", 4096, "cannot hold E = 4096"),
    ],
)
def test_names_that_say_too_little_or_too_much(name: str, floats: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ViTokConfig.named(name, floats=floats)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch": 3}, "divisible by patch 3"),
        ({"frames": 3, "tubelet": 2}, "frames 3 by tubelet 2"),
        ({"rope": "mixed", "tokens": 4, "positions": "learned"}, "1-D code"),
        ({"tokens": 4}, "1-D code"),
        ({"positions": "sincos2d", "frames": 2}, "sincos2d are for images"),
        ({"encoder": {"width": 20, "depth": 1, "heads": 2}, "positions": "learned"}, "by 6"),
        ({"encoder": {"width": 20, "depth": 1, "heads": 2}, "rope": "2d"}, "by 4 for rope 2d"),
        ({"lengths": [9]}, r"lengths must be in 1\.\.8"),
    ],
)
def test_configs_that_cannot_be_built_say_why(fields: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TOKENIZERS.build({**TOKENIZERS.dump(SMALL), **fields})


def test_rotary_scores_depend_on_distance_alone() -> None:
    keys = HashKeys.of(0, range(2))
    q, k = keys.normal((3, 1, 12)), keys.fold("k").normal((3, 1, 12))
    place = torch.arange(5)

    def score(at: int, other: int) -> Tensor:
        turns = [axial([place[i : i + 1]] * 3, [2, 2, 2], 100.0) for i in (at, other)]
        return (rotate(q, turns[0]) * rotate(k, turns[1])).sum(-1)

    torch.testing.assert_close(score(0, 2), score(2, 4))
    assert not torch.allclose(score(0, 2), score(0, 3))
    turned = rotate(q, axial([place[3:4]], [6], 100.0))
    torch.testing.assert_close(turned.norm(dim=-1), q.norm(dim=-1))


@pytest.mark.parametrize("rope", ["1d", "2d", "mixed"])
def test_without_tables_any_size_is_taken(rope: Any) -> None:
    net = noisy(replace(SMALL, rope=rope))
    moments = net.encode(images(size=(16, 20)))
    assert moments.mean.shape == (2, 3, 4, 5)
    assert net.decode(moments.mode()).shape == (2, 3, 16, 20)
    with pytest.raises(ValueError, match="do not divide 1 x 16 x 18"):
        net.encode(images(size=(16, 18)))


def test_tables_are_for_one_size_but_fewer_frames() -> None:
    net = noisy(replace(SMALL, frames=4, tubelet=2, positions="sincos3d"))
    with pytest.raises(ValueError, match=r"positions are for \(2, 2, 4\)"):
        net.encode(torch.zeros(1, 3, 4, 16, 16))
    short = net.encode(torch.zeros(1, 3, 2, 8, 16))
    assert short.mean.shape == (1, 3, 1, 2, 4)
    assert net.decode(short.mode()).shape == (1, 3, 2, 8, 16)


@pytest.mark.parametrize(
    "fields",
    [{"rope": "2d"}, {"rope": "3d"}, {"rope": "mixed"}, {"rope": "none", "positions": "sincos2d"}],
)
def test_positions_tell_patches_apart(fields: Any) -> None:
    """Without them, patches in another order give the same codes in that order."""
    x = images()
    moved = x.roll((4, 8), dims=(2, 3))
    net, nowhere = noisy(replace(SMALL, **fields)), noisy(replace(SMALL, rope="none"))
    for made, equal in ((net, False), (nowhere, True)):
        codes, others = (made.encode(each).mean for each in (x, moved))
        assert torch.allclose(codes.roll((1, 2), dims=(2, 3)), others, atol=1e-4) == equal


def test_codes_are_cut_to_their_first_tokens() -> None:
    net = noisy(replace(SMALL, tokens=4, lengths=(1, 2), positions="learned"))
    z = net.encode(images()).mode()
    cut = net.shorten(z, torch.tensor([1, 3]))
    mask = net.mask_token[0, 0]
    assert torch.equal(cut[0, :, 0, :1], z[0, :, 0, :1])
    assert torch.equal(cut[1, :, 0, :3], z[1, :, 0, :3])
    torch.testing.assert_close(cut[0, :, 0, 1:], mask[:, None].expand(3, 3))
    with pytest.raises(ValueError, match="its config has no lengths"):
        noisy(SMALL).shorten(z, torch.tensor([1, 3]))


def test_the_penalty_is_the_kl_of_one_float() -> None:
    net = noisy(SMALL)
    moments = net.encode(images())
    assert moments.std is not None
    prior = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    posterior = torch.distributions.Normal(moments.mean, moments.std)
    kl = torch.distributions.kl_divergence(posterior, prior).flatten(1).mean(1)
    torch.testing.assert_close(net(images()).penalty, kl)


def test_images_of_many_sizes_fit_one_batch() -> None:
    pictures = [images(size=size, rows=1)[0] for size in ((8, 16), (5, 7), (4, 4))]
    patches = patchify(pictures, 4, tokens=9)
    assert patches.values.shape == (3, 9, 48)
    assert patches.real.sum(1).tolist() == [8, 4, 1]
    assert all(torch.equal(a, b) for a, b in zip(unpatchify(patches, 4), pictures, strict=True))
    net = noisy(V2)
    decoded = unpatchify(net.decode_patches(net.encode_patches(patches)), 4)
    torch.testing.assert_close(decoded[0], net(pictures[0][None]).images[0], atol=1e-5, rtol=1e-4)
    more = patchify(pictures, 4, tokens=12)  # more padding changes nothing
    same = unpatchify(net.decode_patches(net.encode_patches(more)), 4)
    for one, other in zip(decoded, same, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="do not fit 1 to 7 tokens"):
        patchify(pictures, 4, tokens=7)


def test_codes_of_the_second_version_are_normalised() -> None:
    z = noisy(V2).encode(images()).mode()
    torch.testing.assert_close(z.mean(1), torch.zeros(2, 2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.square().mean(1), torch.ones(2, 2, 4), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("name", "official", "message"),
    [
        ("vitok", {"widht": 32}, "no argument 'widht'"),
        ("vitok", {"rope_style": "3d_axial"}, "rope_style one of 1d_axial"),
        ("vitok", {"norm_layer": "rms"}, "norm_layer must be 'layer'"),
        ("vitok", {"img_size": 32, "simple": True}, "missing"),
        ("vitok_v2", {"reg_tokens": 4}, "no argument 'reg_tokens'"),
        ("vitok_v2", {"spatial_stride": 8}, "pixels_per_token must be 3 x 8 x 8"),
    ],
)
def test_official_arguments_are_checked(name: str, official: Any, message: str) -> None:
    small = {"width": 32, "num_heads": 2, "encoder_depth": 1, "decoder_depth": 1}
    with pytest.raises(ValueError, match=message):
        from_official(name, STATE, {**small, **official} if name == "vitok" else official)


def test_the_official_mask_token_and_missing_rotation_are_taken() -> None:
    ours = noisy(replace(SMALL, size=16, lengths=(1, 4), rope="none", decoder=SMALL.encoder))
    official = {
        **{"img_size": 16, "patch_size": 4, "width": 24, "num_heads": 2, "code_width": 3},
        **{"encoder_depth": 1, "decoder_depth": 1, "simple": True, "lengths": [1, 4]},
        **{"rope_theta": 0, "block_casual": True, "checkpoint": True},
    }
    made = from_official("vitok", ours.state_dict(), official)
    assert "mask_token" in made.state_dict()
    x = images(size=(16, 16))
    assert torch.equal(made(x).images, ours(x).images)
