"""One battery over every entry of the table: a new backbone is tested by being listed."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genvis.backbones import BACKBONES
from genvis.checkpoint import from_pretrained, save_pretrained
from genvis.random import HashKeys
from genvis.types import Cond, take

SMALL = {  # what makes a backbone of each class small; a map that is not square
    "DiTConfig": {
        "size": [4, 8],
        "channels": 3,
        "patch": 2,
        "width": 32,
        "depth": 2,
        "heads": 4,
        "num_classes": 5,
    },
    "DiMRConfig": {
        "size": [4, 8],
        "channels": 3,
        "stages": [
            {"width": 16, "hidden": 24, "depth": 2, "heads": 2, "patch": 4},
            {"width": 12, "hidden": 16, "depth": 3, "kernel": 5, "pool": 2},
            {"width": 8, "hidden": 16, "depth": 1, "kernel": 3},
        ],
        "num_classes": 5,
    },
    "LEGOConfig": {
        "size": [4, 8],
        "channels": 3,
        "width": 32,
        "bricks": [
            {"side": 2, "patch": 1, "depth": 1, "heads": 2},
            {"side": 4, "patch": 2, "depth": 2, "heads": 4},
        ],
        "num_classes": 5,
    },
    "PixArtConfig": {
        "size": [4, 8],
        "channels": 3,
        "width": 24,
        "depth": 2,
        "heads": 4,
        "text_width": 6,
        "text_tokens": 5,
    },
    "UViTConfig": {
        "size": [4, 8],
        "channels": 3,
        "patch": 2,
        "width": 32,
        "depth": 4,
        "heads": 4,
        "num_classes": 5,
    },
    "UNetConfig": {
        "size": [4, 8],
        "channels": 3,
        "width": 16,
        "mult": [1, 2, 2],
        "depth": 1,
        "attention": [1],
        "head_width": 8,
        "num_classes": 5,
    },
    "LDMUNetConfig": {
        "size": [4, 8],
        "channels": 3,
        "width": 8,
        "mult": [1, 2, 2],
        "depth": 1,
        "transformers": [0, 2, 1],
        "heads": [1, 2, 4],
        "groups": 4,
        "text_width": 6,
    },
    "DiMConfig": {
        "size": [4, 8],
        "channels": 3,
        "patch": 2,
        "width": 32,
        "depth": 4,
        "state": 8,
        "head": 16,
        "heads": 4,
        "num_classes": 5,
    },
    "ZigMaConfig": {
        "size": [4, 8],
        "channels": 3,
        "patch": 2,
        "width": 16,
        "depth": 3,
        "state": 4,
        "num_classes": 5,
    },
    "DiffusersConfig": {
        "arguments": {
            "sample_size": [4, 8],
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": [8],
            "down_block_types": ["AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D"],
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "attention_head_dim": 8,
            "num_class_embeds": 6,
        },
    },
}
VARIANTS: dict[str, dict[str, Any]] = {  # other conditions and parts, tested by the same battery
    "uvit_unconditional": {"name": "uvit", "num_classes": 0},
    "uvit_text": {"name": "uvit", "num_classes": 0, "text_width": 6, "text_tokens": 3},
    "uvit_gated": {
        "name": "uvit",
        "skips": {"name": "per_token", "reduction": 2},
        "norms": {"kind": "rms", "place": "peri", "qk": True},
        "time_mlp": True,
        "conv": False,
    },
    "pixart_sizes": {
        "name": "pixart",
        "span": 2.0,
        "pixels": 8,
        "null_caption": False,
        "norms": {"kind": "rms", "place": "peri", "qk": True},
    },
    "unet_ldm_pooled": {
        "name": "unet_ldm",
        "transformers": [1, 0, 0],
        "middle": 0,
        "pooled_width": 5,
        "pixels": 8,
        "skips": {"name": "constant"},
    },
    "unet_text": {"name": "unet", "num_classes": 0, "text_width": 6},
    "dim_mamba1": {
        "name": "dim",
        "mixer": "mamba",
        "scan": "zigzag",
        "attention_every": 2,
        "norms": {"kind": "rms", "place": "peri", "qk": True},
    },
    "zigma_text": {"name": "zigma", "num_classes": 0, "text_width": 6},
    "zigma_both_ways": {
        "name": "zigma",
        "scan": "raster",
        "both_ways": True,
        "norm": "layer",
        "positions": "none",
    },
    "diffusers_text": {
        "name": "diffusers",
        "model": "UNet2DConditionModel",
        "arguments": {
            "sample_size": [4, 8],
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": [8],
            "down_block_types": ["CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D"],
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "attention_head_dim": 2,
            "cross_attention_dim": 6,
        },
    },
}
PUBLISHED = {
    "dit_s_2": 33,
    "dit_b_2": 130,
    "dit_l_2": 458,
    "dit_xl_2": 675,
    "pixart_xl_2": 611,
    "pixart_xl_2_1024": 611,
    "uvit_s_2": 44,
    "uvit_s_2_text": 45,
    "uvit_s_2_deep": 58,
    "uvit_m_4": 131,
    "uvit_l_2": 287,
    "uvit_l_4": 287,
    "uvit_h_2": 501,
    "uvit_h_4": 501,
    "unet_adm_256": 554,
    "unet_sd_1": 860,
    "unet_sd_2": 866,
    "unet_sdxl": 2567,
    "dimr_xl_2r": 505,
    "dimr_g_2r": 1056,
}  # millions: DiT, table 1
CLASSES = sorted({BACKBONES.dump(c)["name"] for c in (BACKBONES.build(name) for name in BACKBONES)})
CASES = [*CLASSES, *VARIANTS]


def build(name: str) -> nn.Module:
    """A small net with noise on every weight, so that zero-initialised outputs hide nothing."""
    chosen = VARIANTS.get(name, {"name": name})
    small = SMALL[type(BACKBONES.build(chosen["name"])).__name__]
    torch.manual_seed(0)
    net = BACKBONES.build({**small, **chosen}).build()
    for parameter in net.parameters():
        parameter.data += nn.init.normal_(torch.empty_like(parameter), std=0.1)
    return net.eval()


def condition(net: nn.Module, rows: int = 3, other: int = 0) -> Cond:
    """All that the network is conditioned on; `other` changes all of it."""
    label = text = pooled = None
    if net.config.num_classes:
        label = (torch.arange(rows) + other) % net.config.num_classes
    if width := getattr(net.config, "text_width", 0):
        length = getattr(net.config, "text_tokens", 4)
        text = HashKeys.of(2 + other, range(rows)).normal((length, width))
    if width := getattr(net.config, "pooled_width", 0):
        pooled = HashKeys.of(4 + other, range(rows)).normal((width,))
    return Cond(label=label, text=text, pooled=pooled)


def inputs(net: nn.Module, rows: int = 3) -> tuple[Tensor, Tensor, Cond]:
    keys = HashKeys.of(1, range(rows))
    return keys.normal(net.config.shape), 1000 * keys.uniform().float(), condition(net, rows)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rows", [1, 3])
def test_the_output_is_shaped_like_the_input(name: str, rows: int) -> None:
    net = build(name)
    x, t, cond = inputs(net, rows)
    out = net(x, t, cond)
    assert out.shape == x.shape
    assert out.isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_every_weight(name: str) -> None:
    net = build(name)
    x, t, cond = inputs(net)
    drop = torch.tensor([True, False, False])
    stages = getattr(net, "stages", lambda *given: [net(*given)])  # a loss at each of them
    sum(out.square().mean() for out in stages(x, t, replace(cond, drop=drop))).backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@pytest.mark.parametrize("name", CASES)
def test_rows_do_not_see_each_other(name: str) -> None:
    net = build(name)
    x, t, cond = inputs(net)
    whole = net(x, t, cond)
    parts = torch.cat([net(*take((x, t, cond), slice(i, i + 1))) for i in range(3)])
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_every_input_matters(name: str) -> None:
    net = build(name)
    x, t, cond = inputs(net)
    out = net(x, t, cond)
    others = [(x + 0.1, t, cond), (x, t + 10, cond)]
    if len(cond):
        others.append((x, t, condition(net, other=1)))
    for other in others:
        assert not torch.allclose(out, net(*other), atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_dropped_rows_forget_their_condition(name: str) -> None:
    net = build(name)
    x, t, cond = inputs(net)
    if not len(cond):  # nothing to forget
        assert torch.equal(net(x, t, Cond(drop=torch.ones(3, dtype=torch.bool))), net(x, t, cond))
        return
    other = condition(net, other=1)
    assert torch.equal(net(x, t, cond.dropped()), net(x, t, other.dropped()))
    assert not torch.allclose(net(x, t, cond.dropped()), net(x, t, cond), atol=1e-4)
    half = torch.tensor([True, False, True])
    mixed = net(x, t, replace(cond, drop=half))
    expected = torch.where(half[:, None, None, None], net(x, t, cond.dropped()), net(x, t, cond))
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_save_and_load_are_exact(name: str, tmp_path) -> None:
    net = build(name)
    save_pretrained(net, tmp_path / "model", BACKBONES)
    loaded = from_pretrained(tmp_path / "model", BACKBONES)
    assert loaded.config == net.config
    assert torch.equal(net(*inputs(net)), loaded(*inputs(net)))


TRACED = ("dit",)  # the others, up to a minute each, are among the slow tests


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in TRACED else pytest.mark.slow) for name in CASES]
)
def test_compiled_equals_eager(name: str) -> None:
    net = build(name)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs(net)), net(*inputs(net)), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dit", "uvit", "dim"])
def test_generated_code_equals_eager(name: str) -> None:
    """Forward and backward through inductor."""
    net = build(name)
    twin = copy.deepcopy(net)
    compiled = torch.compile(twin, fullgraph=True)
    ours, theirs = net(*inputs(net)), compiled(*inputs(net))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    ours.square().mean().backward()
    theirs.square().mean().backward()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_shape_is_named(name: str) -> None:
    net = build(name)
    x, t, cond = inputs(net)
    with pytest.raises(ValueError, match=r"x must be \(B, "):
        net(x[:, :, :2], t, cond)


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_size(name: str) -> None:
    with torch.device("meta"):
        net = BACKBONES.build(name).build()
    assert round(sum(p.numel() for p in net.parameters()) / 1e6) == PUBLISHED[name]


def test_every_dit_preset_resolves_to_what_its_name_says() -> None:
    for name in (name for name in BACKBONES if name.startswith("dit_")):
        family, size, patch = name.split("_")
        config, twin = BACKBONES.build(name), BACKBONES.build(f"{family}_{size}_2")
        assert config == replace(twin, patch=int(patch))
