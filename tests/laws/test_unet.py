"""The UNet: sizes, text, long skips."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from genvis.backbones import BACKBONES
from genvis.backbones.unet import UNet
from genvis.config import ConfigError
from genvis.random import HashKeys
from genvis.types import Cond

SMALL = {"channels": 2, "width": 16, "mult": [1, 2, 2], "depth": 1, "head_width": 8}
TEXT = {"num_classes": 0, "text_width": 6}
KAPPA = {"name": "constant"}


def unet(std: float = 0.1, **fields: object) -> UNet:
    net = BACKBONES.build({"name": "unet", **SMALL, **fields}).build().eval()
    if std:
        torch.manual_seed(0)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=std)
    return net


def inputs(size: tuple[int, int] = (8, 8), rows: int = 2) -> tuple[Tensor, Tensor, Cond]:
    x = HashKeys.of(0, range(rows)).normal((2, *size))
    return x, torch.linspace(0, 1000, rows), Cond(label=torch.arange(rows))


def words(rows: int = 2) -> Cond:
    mask = torch.tensor([True, True, False])
    return Cond(text=HashKeys.of(1, range(rows)).normal((3, 6)), text_mask=mask.expand(rows, -1))


@pytest.mark.parametrize("resample", ["block", "conv"])
@pytest.mark.parametrize("size", [(8, 8), (4, 12), (5, 7), (11, 4), (9, 16)])
def test_any_size_from_four_pixels(size: tuple[int, int], resample: str) -> None:
    out = unet(resample=resample)(*inputs(size))
    assert out.shape == (2, 2, *size)
    assert out.isfinite().all()


def test_smaller_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="H and W at least 4"):
        unet()(*inputs((8, 3)))
    with pytest.raises(ConfigError, match="H and W at least 4"):
        unet(size=2)


def test_the_output_starts_at_zero_and_has_the_variance_after_it() -> None:
    assert not unet(std=0)(*inputs()).any()
    assert unet(learned_variance=True)(*inputs()).shape == (2, 4, 8, 8)


def test_every_pixel_sees_every_other() -> None:
    net = unet(attention=[])  # the middle attends all the same
    x, t, cond = inputs((12, 12), rows=1)
    x.requires_grad_()
    net(x, t, cond)[0, 0, 0, 0].backward()
    assert (x.grad[0].abs().amax(0) > 0).all()


def test_text_matters_where_it_is_not_masked() -> None:
    net, cond = unet(**TEXT), words()
    x, t, _ = inputs()
    out = net(x, t, cond)
    padded, changed = cond.text.clone(), cond.text.clone()
    padded[:, 2] = 100.0
    changed[:, 1] *= -1.0
    assert torch.equal(net(x, t, replace(cond, text=padded)), out)
    assert not torch.allclose(net(x, t, replace(cond, text=changed)), out, atol=1e-4)
    shorter = Cond(text=cond.text[:, :2])
    torch.testing.assert_close(net(x, t, shorter), out, rtol=1e-5, atol=1e-5)


def test_dropped_rows_forget_their_text() -> None:
    net, cond = unet(**TEXT), words()
    x, t, _ = inputs()
    free = net(x, t, cond.dropped())
    torch.testing.assert_close(net(x, t, Cond(drop=torch.tensor([True, True]))), free)
    unseen = replace(cond, text_mask=torch.zeros(2, 3, dtype=torch.bool))
    torch.testing.assert_close(net(x, t, unseen), free)  # an empty text, and no NaN
    half = net(x, t, replace(cond, drop=torch.tensor([True, False])))
    expected = torch.stack([free[0], net(x, t, cond)[1]])
    torch.testing.assert_close(half, expected, rtol=1e-5, atol=1e-5)


def test_missing_and_misshapen_text_are_named() -> None:
    net = unet(**TEXT)
    x, t, label = inputs()
    with pytest.raises(ValueError, match=r"cond\.text is missing"):
        net(x, t, label)
    with pytest.raises(ValueError, match=r"text must be \(B, L, 6\)"):
        net(x, t, Cond(text=torch.zeros(2, 3, 5)))


def test_text_starts_without_effect() -> None:
    net = unet(std=0, **TEXT)
    nn.init.normal_(net.conv_out.weight)
    x, t, _ = inputs()
    assert torch.equal(net(x, t, words()), net(x, t, words().dropped()))


def test_gradients_reach_every_weight_of_a_text_network() -> None:
    net = unet(resample="conv", skips={"name": "per_channel", "reduction": 2}, **TEXT)
    x, t, _ = inputs()
    net(x, t, words()).square().mean().backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]


def test_kappa_one_is_no_scaling() -> None:
    plain, same = unet(), unet(skips={**KAPPA, "kappa": 1.0})
    assert plain.state_dict().keys() == same.state_dict().keys()
    assert torch.equal(plain(*inputs()), same(*inputs()))
    half = unet(skips={**KAPPA, "kappa": 0.5})
    half.load_state_dict(plain.state_dict())
    assert not torch.allclose(plain(*inputs()), half(*inputs()), atol=1e-4)


def test_skips_are_numbered_from_the_outside() -> None:
    net, seen = unet(depth=2), []
    net.skip_gates.register_forward_pre_hook(
        lambda _, given: seen.append((given[0], tuple(given[1].shape[1:])))
    )
    net(*inputs())
    wide, middle, deep = (16, 8, 8), (32, 4, 4), (32, 2, 2)
    outside_in = (
        [wide] * 3 + [(16, 4, 4), middle, middle] + [deep] * 3
    )  # 1 + 3 levels x (2 + 1) - 1
    assert seen == [(i + 1, shape) for i, shape in reversed([*enumerate(outside_in)])]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention": [3]}, r"levels in 0\.\.2"),
        ({"head_width": 12}, "head_width must divide"),
        ({"width": 18}, "divisible by 4"),
        ({"mult": []}, "at least 1"),
        ({"text_width": -1}, "at least 0"),
        ({"dropout": 1.0}, "dropout"),
        ({"skips": {"name": "per_token"}}, "per_channel"),
    ],
)
def test_what_cannot_be_built_is_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unet(**fields)
