"""The UNet of latent diffusion: depths by level, texts, pooled texts, long skips."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from genvis.backbones import BACKBONES
from genvis.backbones.unet_ldm import LDMUNet, LDMUNetConfig
from genvis.config import ConfigError
from genvis.nn.skips import Constant
from genvis.random import HashKeys
from genvis.types import Cond

TINY = LDMUNetConfig(
    size=8,
    channels=2,
    width=8,
    mult=(1, 2),
    depth=1,
    transformers=(0, 2),
    heads=(1, 2),
    groups=4,
    text_width=6,
)
T = torch.tensor([3.0, 900.0])
TEXT = HashKeys.of(1, range(2)).normal((5, 6))
MASK = torch.arange(5) < torch.tensor([2, 4])[:, None]


def build(config: LDMUNetConfig = TINY, std: float = 0.2) -> LDMUNet:
    torch.manual_seed(0)
    net = config.build().eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter += std * nn.init.normal_(torch.empty_like(parameter))
    return net


def maps(h: int = 8, w: int = 8) -> Tensor:
    return HashKeys.of(0, range(2)).normal((2, h, w))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (4, 12), (5, 7), (2, 3)])
def test_maps_of_other_sizes(size: tuple[int, int]) -> None:
    out = build()(maps(*size), T, Cond(text=TEXT))
    assert out.shape == (2, 2, *size)
    assert out.isfinite().all()


def test_padding_is_not_seen() -> None:
    net, cond, x = build(), Cond(text=TEXT, text_mask=MASK), maps()
    out = net(x, T, cond)
    junk = torch.where(MASK[..., None], TEXT, torch.nan)
    assert torch.equal(net(x, T, replace(cond, text=junk)), out)
    for row, length in enumerate((2, 4)):
        one = slice(row, row + 1)
        close(net(x[one], T[one], Cond(text=TEXT[one, :length])), out[one])
    assert not torch.allclose(net(x, T, Cond(text=TEXT)), out, atol=1e-4)


def test_dropped_rows_take_the_negative_or_zeros() -> None:
    net, x = build(replace(TINY, pooled_width=3, pixels=8)), maps()
    pooled = HashKeys.of(2, range(2)).normal((3,))
    other = Cond(text=TEXT[:, :3] + 1, text_mask=MASK[:, :3], pooled=-pooled)
    cond = Cond(text=TEXT, text_mask=MASK, pooled=pooled)
    first = torch.tensor([True, False])
    out = net(x, T, replace(cond, negative=other, drop=first))
    close(out, torch.stack([net(x, T, other)[0], net(x, T, cond)[1]]))
    zeros = net(x, T, Cond(text=torch.zeros(2, 1, 6), pooled=0 * pooled))
    close(net(x, T, replace(cond, drop=first))[0], zeros[0])
    close(net(x, T, Cond(drop=torch.tensor([True, True]))), zeros)


@pytest.mark.parametrize(
    ("cond", "why"),
    [
        (Cond(pooled=torch.zeros(2, 3)), r"cond\.text is missing"),
        (Cond(text=TEXT), r"cond\.pooled is missing"),
        (Cond(text=TEXT, pooled=torch.zeros(2, 4)), r"cond\.pooled must be \(2, 3\), got \(2, 4\)"),
        (Cond(text=TEXT[..., :4], pooled=torch.zeros(2, 3)), r"cond\.text must be \(B, L, 6\)"),
    ],
)
def test_conditions_that_do_not_fit_are_named(cond: Cond, why: str) -> None:
    net = build(replace(TINY, pooled_width=3))
    with pytest.raises(ValueError, match=why):
        net(maps(), T, cond)


def test_the_size_of_the_map_is_a_condition() -> None:
    net = build(replace(TINY, pixels=8))
    other = replace(TINY, pixels=16).build().eval()
    other.load_state_dict(net.state_dict())
    out, cond = net(maps(), T, Cond(text=TEXT)), Cond(text=TEXT)
    assert not torch.allclose(other(maps(), T, cond), out, atol=1e-4)


def test_it_starts_at_zero() -> None:
    net = build(std=0)
    assert not net(maps(), T, Cond(text=TEXT)).any()
    nn.init.normal_(net.conv_out.weight)
    assert torch.equal(net(maps(), T, Cond(text=TEXT)), net(maps(), T, Cond(text=-TEXT)))


def test_depth_is_chosen_by_level() -> None:
    """As on the axis of Li et al. 2024: every level's own, on the way down and up, and the
    middle's.
    """
    net = build(replace(TINY, transformers=(3, 1), middle=2))
    found = [
        len(block.attentions[0].transformer_blocks)
        for block in (*net.down_blocks, net.mid_block, *net.up_blocks)
    ]
    assert found == [3, 1, 2, 1, 3]
    assert not [k for k in build().state_dict() if k.startswith("down_blocks.0.attentions")]


def test_an_efficient_variant_is_45_percent_smaller() -> None:
    with torch.device("meta"):
        small, sdxl = (BACKBONES.build(name).build() for name in ("unet_td4_4", "unet_sdxl"))
    counts = [sum(p.numel() for p in net.parameters()) for net in (small, sdxl)]
    assert 1 - counts[0] / counts[1] == pytest.approx(0.45, abs=0.005)


def test_skips_are_scaled_from_the_outside() -> None:
    net = build()
    same, half = (build(replace(TINY, skips=Constant(kappa=kappa))) for kappa in (1.0, 0.5))
    cond = Cond(text=TEXT)
    assert torch.equal(same(maps(), T, cond), net(maps(), T, cond))
    assert not torch.allclose(half(maps(), T, cond), net(maps(), T, cond), atol=1e-4)
    seen: list[tuple[int, tuple[int, ...]]] = []
    net.skip_gates.register_forward_pre_hook(
        lambda _, given: seen.append((given[0], tuple(given[1].shape[1:])))
    )
    net(maps(), T, cond)
    assert seen == [(4, (16, 4, 4)), (3, (8, 4, 4)), (2, (8, 8, 8)), (1, (8, 8, 8))]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"transformers": (1,)}, "must have a number for every level, got 2, 1 and 2"),
        ({"heads": (3, 2)}, "divisible by groups and heads, got 8, 4 and 3"),
        ({"groups": 3}, "divisible by groups and heads"),
        ({"middle": -1}, "must be at least 0"),
        ({"text_width": 0}, "must be at least 1"),
        ({"size": 1}, "H and W at least 2"),
    ],
)
def test_what_cannot_be_built_is_named(fields: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        replace(TINY, **fields)
