"""Scaled long skips: what they may touch, and what they do to a deep network."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genvis.backbones.uvit import UViTConfig
from genvis.config import ConfigError
from genvis.integrations.skips import scale_skips
from genvis.nn import SKIP_SCALES
from genvis.nn.skips import (
    Constant,
    InverseSqrt2,
    PerChannel,
    PerToken,
    SkipScale,
    Unscaled,
)
from genvis.random import HashKeys
from genvis.types import Cond

FIXED = [Unscaled(), InverseSqrt2(), Constant(kappa=0.7)]
GATED = [PerChannel(reduction=2), PerToken(reduction=2), PerToken(reduction=2, shared=True)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return HashKeys.of(seed, range(shape[0])).normal(shape[1:])


@pytest.mark.parametrize("name", list(SKIP_SCALES))
def test_every_choice_maps_skips_to_their_like_and_leaves_them_alone(name: str) -> None:
    scale = SKIP_SCALES.build(name).build((32, 32, 32), tokens=20)
    skip = normal(2, 20, 32)
    before = skip.clone()
    for i in (1, 2, 3):
        scaled = scale(i, skip)
        assert scaled.shape == skip.shape
        assert ((scaled / skip > 0) & (scaled / skip <= 1)).all()
    assert torch.equal(skip, before)


def test_constants_by_number() -> None:
    skip = normal(2, 5, 4)
    constant = Constant(kappa=0.7).build((4,) * 3, tokens=5)
    assert torch.equal(constant(1, skip), skip)
    torch.testing.assert_close(constant(2, skip), 0.7 * skip)
    torch.testing.assert_close(constant(3, skip), 0.49 * skip)
    root = InverseSqrt2().build((4,) * 3, tokens=5)
    for i in (1, 2, 3):
        torch.testing.assert_close(root(i, skip), skip / 2**0.5)


def test_gates_are_per_token_or_per_channel() -> None:
    tokens = PerToken(reduction=2).build((4, 4), tokens=6)
    ratio = tokens(1, skip := normal(2, 6, 4)) / skip
    torch.testing.assert_close(ratio, ratio[:, :, :1].expand(-1, -1, 4))
    assert ratio[0, :, 0].std() > 0
    maps = PerChannel(reduction=2).build((4, 8))
    for i, channels in ((1, 4), (2, 8)):
        ratio = maps(i, skip := normal(2, channels, 3, 5)) / skip
        torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand(-1, -1, 3, 5))
        assert ratio[0, :, 0, 0].std() > 0


def test_released_names_of_gates() -> None:
    shared = PerToken(shared=True).build((8,) * 3, tokens=18)
    names = {f"layer{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
    assert set(shared.state_dict()) == names
    own = PerToken().build((8,) * 3, tokens=18)
    assert set(own.state_dict()) == {f"{j}.{name}" for j in range(3) for name in names}
    with torch.no_grad():
        own[0].layer2.bias.fill_(-50)  # 0 is the innermost
    skip = normal(1, 18, 8)
    assert own(3, skip).abs().max() < 1e-6 < own(1, skip).abs().min()


@pytest.mark.parametrize(
    ("choice", "tokens", "why"),
    [
        (PerToken(), None, "have no tokens; use per_channel"),
        (PerToken(), 15, r"reduction must be in 1\.\.15"),
        (PerChannel(), None, r"reduction must be in 1\.\.8"),
        (PerChannel(reduction=0), 64, r"reduction must be in 1\.\.8"),
    ],
)
def test_gates_that_do_not_fit(choice: SkipScale, tokens: int | None, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        choice.build((8, 8), tokens)


@pytest.mark.parametrize("kappa", [0.0, -0.5, 1.01])
def test_kappa_out_of_range(kappa: float) -> None:
    with pytest.raises(ConfigError, match=r"kappa must be in \(0, 1\]"):
        Constant(kappa=kappa)


# in a U-ViT


def uvit(skips: SkipScale) -> nn.Module:
    torch.manual_seed(0)
    config = UViTConfig(size=4, width=32, depth=6, heads=2, num_classes=3, skips=skips)
    return config.build().eval()


def outputs(net: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and what enters and leaves the blocks."""
    seen: dict[str, Tensor] = {}
    for j, (into, out) in enumerate(zip(net.in_blocks, net.out_blocks, strict=True)):
        into.register_forward_hook(lambda *call, j=j: seen.update({f"in{j}": call[2]}))
        out.register_forward_pre_hook(lambda block, args, j=j: seen.update({f"skip{j}": args[1]}))
    net.mid_block.register_forward_hook(lambda *call: seen.update(middle=call[2]))
    with torch.no_grad():
        return net(
            normal(2, 4, 4, 4), torch.tensor([3.0, 800.0]), Cond(label=torch.arange(2))
        ), seen


def test_fixed_scales_leave_the_state_dict_and_the_initial_values() -> None:
    plain = uvit(Unscaled()).state_dict()
    for choice in FIXED:
        own = uvit(choice).state_dict()
        assert own.keys() == plain.keys()
        assert all(torch.equal(own[name], plain[name]) for name in plain)
    for choice in GATED:
        own = uvit(choice).state_dict()
        assert {name for name in own if not name.startswith("se.")} == plain.keys()
        assert all(torch.equal(own[name], plain[name]) for name in plain)


def test_kappa_one_is_no_scaling_bit_for_bit() -> None:
    assert torch.equal(outputs(uvit(Constant(kappa=1.0)))[0], outputs(uvit(Unscaled()))[0])


@pytest.mark.parametrize("choice", [*FIXED, *GATED])
def test_only_the_skips_are_touched_and_the_outermost_never_by_a_constant(
    choice: SkipScale,
) -> None:
    plain, seen = outputs(uvit(Unscaled()))[1], outputs(uvit(choice))[1]
    for name in ("in0", "in1", "in2", "middle"):
        assert torch.equal(seen[name], plain[name])
    for j in range(3):
        assert torch.equal(plain[f"skip{j}"], plain[f"in{2 - j}"])
    if choice == Constant(kappa=0.7):
        assert torch.equal(seen["skip2"], seen["in0"])
        torch.testing.assert_close(seen["skip0"], 0.7**2 * seen["in2"])


# in a UNet of diffusers


def unet(conditional: bool) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """A small one, and what calls the UNet it is given."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    }
    if conditional:
        net = diffusers.UNet2DConditionModel(
            **common,
            cross_attention_dim=6,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
        return net.eval(), lambda net: net(X, T, normal(2, 3, 6)).sample
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return diffusers.UNet2DModel(**common, **blocks).eval(), lambda net: net(X, T).sample


X, T = normal(2, 3, 8, 8, seed=1), torch.tensor([1, 900])


@pytest.mark.parametrize("conditional", [False, True])
@torch.no_grad()
def test_hooks_scale_and_can_be_removed(conditional: bool) -> None:
    net, call = unet(conditional)
    plain, keys = call(net), set(net.state_dict())
    for choice in (Unscaled(), Constant(kappa=1.0)):
        scaled = scale_skips(net, choice)
        assert torch.equal(call(net), plain)
        assert set(net.state_dict()) == keys
        scaled.remove()
    for choice in (InverseSqrt2(), Constant(), PerChannel(reduction=4)):
        scaled = scale_skips(net, choice)
        first = call(net)
        assert not torch.allclose(first, plain, atol=1e-4)
        assert torch.equal(call(net), first)  # no state between two calls
        with pytest.raises(ValueError, match="scaled already"):
            scale_skips(net, choice)
        scaled.remove()
        assert torch.equal(call(net), plain)
        assert set(net.state_dict()) == keys


class Recorded:
    """No scaling, but what was asked for is kept."""

    def build(self, channels: Sequence[int], tokens: int | None = None) -> nn.Module:
        return Recorder()


class Recorder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, Tensor] = {}

    def forward(self, i: int, skip: Tensor) -> Tensor:
        self.seen[i] = skip
        return skip


@pytest.mark.parametrize("conditional", [False, True])
@torch.no_grad()
def test_skips_are_numbered_from_the_outermost(conditional: bool) -> None:
    net, call = unet(conditional)
    left: list[Tensor] = []
    net.conv_in.register_forward_hook(lambda module, args, output: left.append(output))
    for block in net.down_blocks:
        block.register_forward_hook(lambda block, args, output: left.extend(output[1]))
    scale_skips(net, Recorded())
    call(net)
    seen = net.skip_gates.seen
    assert sorted(seen) == list(range(1, len(left) + 1))
    assert all(seen[i] is skip for i, skip in enumerate(left, start=1))


@pytest.mark.parametrize("conditional", [False, True])
@torch.no_grad()
def test_hooks_never_edit_the_skips(conditional: bool) -> None:
    net, call = unet(conditional)
    left: list[Tensor] = []
    for block in net.down_blocks:
        block.register_forward_hook(lambda block, args, output: left.extend(output[1]))
    call(net)
    plain = [skip.clone() for skip in left]
    left.clear()
    scale_skips(net, Constant(kappa=0.5))
    call(net)
    assert len(left) == len(plain) > 2
    assert all(map(torch.equal, left, plain))


def test_gates_are_saved_trained_and_copied_with_the_unet() -> None:
    net, call = unet(conditional=False)
    keys = set(net.state_dict())
    scale_skips(net, PerChannel(reduction=4))
    gained = set(net.state_dict()) - keys
    assert gained
    assert all(name.startswith("skip_gates.") for name in gained)
    for gate in net.skip_gates:
        nn.init.ones_(gate.layer1.bias)  # no unit of the few is off
    call(net).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.skip_gates.parameters())
    twin = copy.deepcopy(net)
    with torch.no_grad():
        before = call(net)
        for gate in twin.skip_gates:
            gate.layer2.bias.fill_(-50)
        assert torch.equal(call(net), before)
        assert not torch.allclose(call(twin), before, atol=1e-4)


def test_networks_without_such_skips_are_named() -> None:
    with pytest.raises(ValueError, match="Linear has no such blocks"):
        scale_skips(nn.Linear(2, 2), Constant())
    diffusers = pytest.importorskip("diffusers")
    k_diffusion = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 32),
        layers_per_block=2,
        norm_num_groups=None,
        cross_attention_dim=8,
        attention_head_dim=8,
        down_block_types=("KDownBlock2D", "KDownBlock2D"),
        up_block_types=("KUpBlock2D", "KUpBlock2D"),
        mid_block_type=None,
        resnet_time_scale_shift="ada_group",
    )
    with pytest.raises(ValueError, match="UNet2DConditionModel join no skip to some resnets"):
        scale_skips(k_diffusion, Constant())


# in a deep linear UNet, where the gain of the whole network is a number


def gain(choice: SkipScale, depth: int, width: int = 64) -> float:
    """The spectral norm of f_0, f_i(x) = B_{i+1} (k_{i+1} A_{i+1} x + f_{i+1}(A_{i+1} x)).

    f_depth is constant, so that all paths go through skips.
    """
    scale = choice.build((width,) * depth, tokens=width)
    a, b = normal(2, depth, width, width).double() * (1.3 / width) ** 0.5
    x = torch.eye(width, dtype=torch.float64)
    skips = []
    for i in range(depth):
        x = x @ a[i].T
        skips.append(x)
    x = torch.zeros_like(x)
    while skips:
        i = len(skips)
        x = (scale(i, skips.pop()) + x) @ b[i - 1].T
    return torch.linalg.matrix_norm(x, 2).item()


def test_constant_scaling_bounds_the_gain_of_a_deep_unet() -> None:
    plain, root, weak, strong = (
        [gain(choice, depth) for depth in (4, 8, 16)]
        for choice in (Unscaled(), InverseSqrt2(), Constant(kappa=0.7), Constant(kappa=0.5))
    )
    assert plain[2] > 10 * plain[0]
    assert root == pytest.approx([norm / 2**0.5 for norm in plain])  # grows as fast
    assert weak[2] < 2.5 * weak[0]
    assert strong[2] < 1.2 * strong[0]
