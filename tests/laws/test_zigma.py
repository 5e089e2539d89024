"""ZigMa: what the released arguments mean, and how text enters."""

from typing import Any

import pytest
import torch
from torch import nn

from genvis.backbones.zigma import ZigMa, ZigMaConfig, from_official
from genvis.config import ConfigError
from genvis.nn.scan_orders import scan_orders
from genvis.types import Cond

OFFICIAL: dict[str, Any] = {"in_channels": 4, "embed_dim": 16, "depth": 3, "img_dim": 8}
TINY = ZigMaConfig(size=4, width=16, depth=2, patch=1, num_classes=0, text_width=6)


def loaded(official: dict[str, Any], **ours: Any) -> ZigMa:
    """The net that `official` means, given weights of the config that it should mean."""
    fields = {"size": 8, "width": 16, "depth": 3, "patch": 1, "num_classes": 0, "norm": "layer"}
    state = ZigMaConfig(**{**fields, "positions": "none", **ours}).build().state_dict()
    return from_official({**OFFICIAL, **official}, state)


@pytest.mark.parametrize(
    ("official", "ours"),
    [
        ({}, {"both_ways": True}),
        ({"scan_type": "zigzagN8", "use_pe": 2}, {"positions": "learned"}),
        ({"scan_type": "v1", "use_pe": 1, "patch_size": 2}, {"positions": "fixed", "patch": 2}),
        ({"scan_type": "v1", "rms_norm": True}, {"norm": "rms"}),
        ({"scan_type": "v1", "ssm_cfg": {"d_state": 4, "expand": 1}}, {"state": 4, "expand": 1}),
        ({"scan_type": "v1", "num_classes": 3}, {"num_classes": 3, "null_class": False}),
        ({"scan_type": "v1", "has_text": True, "d_context": 6}, {"text_width": 6}),
    ],
)
def test_released_arguments_are_understood(official: dict[str, Any], ours: dict[str, Any]) -> None:
    config = loaded(official, **ours).config
    assert {name: getattr(config, name) for name in ours} == ours


@pytest.mark.parametrize(
    ("scan_type", "name"), [("zigzagN2", "zigzag"), ("hilbertN2", "hilbert_ranks")]
)
def test_layers_take_turns_at_the_first_paths(scan_type: str, name: str) -> None:
    net = loaded({"scan_type": scan_type})
    paths = scan_orders(name, 8, 8)
    for block, row in zip(net.blocks, (0, 1, 0), strict=True):
        assert torch.equal(block.order, paths[row])


@pytest.mark.parametrize(
    ("official", "message"),
    [
        ({"embed_dims": 16}, "no argument 'embed_dims'"),
        ({"scan_type": "randomN8"}, "scan_type must be v1, v2"),
        ({"scan_type": "zigzagN9"}, "8 paths, got paths 9"),
        ({"video_frames": 4}, "videos are not implemented"),
        ({"ssm_cfg": {"d_stat": 4}}, "no argument 'd_stat'; did you mean 'd_state'"),
    ],
)
def test_other_arguments_are_refused(official: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loaded(official)


def noisy(config: ZigMaConfig) -> ZigMa:
    torch.manual_seed(0)
    net = config.build()
    for parameter in net.parameters():
        parameter.data += nn.init.normal_(torch.empty_like(parameter), std=0.1)
    return net


def test_padding_of_the_text_is_not_read() -> None:
    net, x, t = noisy(TINY), torch.randn(2, 4, 4, 4), torch.tensor([10.0, 500.0])
    text = torch.randn(2, 3, 6)
    padded = torch.cat([text, torch.randn(2, 2, 6)], dim=1)
    mask = torch.tensor([True, True, True, False, False]).expand(2, -1)
    short = net(x, t, Cond(text=text))
    torch.testing.assert_close(net(x, t, Cond(text=padded, text_mask=mask)), short)
    assert not torch.allclose(net(x, t, Cond(text=padded)), short, atol=1e-4)


def test_no_text_is_one_thing_however_it_is_said() -> None:
    net, x, t = noisy(TINY), torch.randn(2, 4, 4, 4), torch.tensor([10.0, 500.0])
    drop, text = torch.ones(2, dtype=torch.bool), torch.randn(2, 3, 6)
    blank = torch.zeros(2, 3, dtype=torch.bool)
    free = net(x, t, Cond(drop=drop))
    torch.testing.assert_close(net(x, t, Cond(text=text, drop=drop)), free)
    torch.testing.assert_close(net(x, t, Cond(text=text, text_mask=blank)), free)
    with pytest.raises(ValueError, match=r"cond\.text is missing"):
        net(x, t, Cond())


def test_dropped_rows_take_the_negative() -> None:
    net, x, t = noisy(TINY), torch.randn(2, 4, 4, 4), torch.tensor([10.0, 500.0])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    other = Cond(text=torch.randn(2, 3, 6), text_mask=mask)
    cond = Cond(text=torch.randn(2, 5, 6), negative=other, drop=torch.tensor([True, False]))
    expected = torch.stack([net(x, t, other)[0], net(x, t, Cond(text=cond.text))[1]])
    torch.testing.assert_close(net(x, t, cond), expected, rtol=1e-4, atol=1e-5)


def test_texts_that_do_not_fit_are_named() -> None:
    net, x, t = noisy(TINY), torch.randn(2, 4, 4, 4), torch.tensor([10.0, 500.0])
    text, mask = torch.randn(2, 3, 6), torch.ones(2, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"cond\.text must be \(B, L, 6\), got .* for 2 rows"):
        net(x, t, Cond(text=text[:1]))
    with pytest.raises(ValueError, match=r"cond\.text_mask must be \(2, 3\) bool"):
        net(x, t, Cond(text=text, text_mask=mask))


def test_labels_and_text_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="labels or text, not both"):
        ZigMaConfig(text_width=6)
