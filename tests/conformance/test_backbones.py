"""One battery over every entry of the table: a new backbone is tested by being listed."""

from dataclasses import replace

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
}
PUBLISHED = {
    "dit_s_2": 33,
    "dit_b_2": 130,
    "dit_l_2": 458,
    "dit_xl_2": 675,
}  # millions: DiT, table 1
CLASSES = sorted({BACKBONES.dump(c)["name"] for c in (BACKBONES.build(name) for name in BACKBONES)})


def build(name: str) -> nn.Module:
    """A small net with every weight random, so that zero-initialised outputs hide nothing."""
    config = BACKBONES.build(name)
    torch.manual_seed(0)
    net = BACKBONES.build({"name": name, **SMALL[type(config).__name__]}).build()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net.eval()


def inputs(net: nn.Module, rows: int = 3) -> tuple[Tensor, Tensor, Cond]:
    keys = HashKeys.of(1, range(rows))
    label = torch.arange(rows) % net.config.num_classes
    return keys.normal(net.config.shape), 1000 * keys.uniform().float(), Cond(label=label)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("rows", [1, 3])
def test_the_output_is_shaped_like_the_input(name: str, rows: int) -> None:
    net = build(name)
    x, t, cond = inputs(net, rows)
    out = net(x, t, cond)
    assert out.shape == x.shape
    assert out.isfinite().all()


@pytest.mark.parametrize("name", CLASSES)
def test_gradients_reach_every_weight(name: str) -> None:
    net = build(name)
    x, t, cond = inputs(net)
    drop = torch.tensor([True, False, False])
    net(x, t, replace(cond, drop=drop)).square().mean().backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@pytest.mark.parametrize("name", CLASSES)
def test_rows_do_not_see_each_other(name: str) -> None:
    net = build(name)
    x, t, cond = inputs(net)
    whole = net(x, t, cond)
    parts = torch.cat([net(*take((x, t, cond), slice(i, i + 1))) for i in range(3)])
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_every_input_matters(name: str) -> None:
    net = build(name)
    x, t, cond = inputs(net)
    out = net(x, t, cond)
    others = [
        (x + 0.1, t, cond),
        (x, t + 10, cond),
        (x, t, Cond(label=(cond.label + 1) % net.config.num_classes)),
    ]
    for other in others:
        assert not torch.allclose(out, net(*other), atol=1e-4)


@pytest.mark.parametrize("name", CLASSES)
def test_dropped_rows_forget_their_condition(name: str) -> None:
    net = build(name)
    x, t, cond = inputs(net)
    other = Cond(label=(cond.label + 1) % net.config.num_classes)
    assert torch.equal(net(x, t, cond.dropped()), net(x, t, other.dropped()))
    assert not torch.allclose(net(x, t, cond.dropped()), net(x, t, cond), atol=1e-4)
    half = torch.tensor([True, False, True])
    mixed = net(x, t, replace(cond, drop=half))
    expected = torch.where(half[:, None, None, None], net(x, t, cond.dropped()), net(x, t, cond))
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_save_and_load_are_exact(name: str, tmp_path) -> None:
    net = build(name)
    save_pretrained(net, tmp_path / "model", BACKBONES)
    loaded = from_pretrained(tmp_path / "model", BACKBONES)
    assert loaded.config == net.config
    assert torch.equal(net(*inputs(net)), loaded(*inputs(net)))


@pytest.mark.parametrize("name", CLASSES)
def test_compiled_equals_eager(name: str) -> None:
    net = build(name)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs(net)), net(*inputs(net)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CLASSES)
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


def test_every_preset_resolves_to_what_its_name_says() -> None:
    for name in set(BACKBONES) - set(CLASSES):
        family, size, patch = name.split("_")
        config, twin = BACKBONES.build(name), BACKBONES.build(f"{family}_{size}_2")
        assert config == replace(twin, patch=int(patch))
