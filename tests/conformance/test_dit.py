"""What the DiT paper promises of a fresh network."""

import pytest
import torch

from genvis.backbones.dit import DiTConfig, from_official
from genvis.config import ConfigError
from genvis.types import Cond

TINY = DiTConfig(size=8, channels=1, width=32, depth=2, heads=4, num_classes=3)


def test_output_is_zero_and_blocks_are_the_identity_at_init() -> None:
    net = TINY.build()
    x, t, cond = (
        torch.randn(2, 1, 8, 8),
        torch.tensor([10.0, 500.0]),
        Cond(label=torch.tensor([0, 2])),
    )
    assert net(x, t, cond).abs().max() == 0
    tokens = torch.randn(2, 16, 32)
    assert torch.equal(net.blocks[0](tokens, torch.randn(2, 32)), tokens)


def test_labels_are_needed_and_dropping_needs_a_null_class() -> None:
    net = DiTConfig(
        size=8, channels=1, width=32, depth=1, heads=4, num_classes=3, null_class=False
    ).build()
    x, t = torch.randn(2, 1, 8, 8), torch.zeros(2)
    with pytest.raises(ValueError, match=r"cond\.label is missing"):
        net(x, t, Cond())
    with pytest.raises(ValueError, match="null_class"):
        net(x, t, Cond(label=torch.zeros(2, dtype=torch.int64)).dropped())


@pytest.mark.parametrize(
    ("official", "state", "message"),
    [
        ({"depth": 1, "hiden_size": 32}, {}, "no argument 'hiden_size'"),
        ({"input_size": 8, "hidden_size": 32, "depth": 1, "num_heads": 4}, {}, "missing"),
    ],
)
def test_official_checkpoints_load_strictly(official: dict, state: dict, message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        from_official(official, state)
