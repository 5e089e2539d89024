"""Schedules of VAR's recipe, and which of its parameters decay."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from genvis.backbones.mvar import MVARConfig
from genvis.backbones.var import VARConfig
from genvis.config import build
from genvis.training.optim import Optim

SMALL = {"scales": (1, 2), "codes": 8, "code_width": 4, "width": 16, "depth": 1, "heads": 2}
UNDECAYED = {"pos_start", "pos_1LC", "lvl_embed", "ada_gss", "scale_mul_1H11"}


def optim(**fields: Any) -> Optim:
    return build(Optim, fields)


def test_a_learning_rate_that_holds_and_then_falls_to_a_share() -> None:
    """Flat for 5 percent after the warm-up, then linear to a tenth."""
    lin0 = optim(lr=2.0, warmup=20, schedule="linear", hold=0.05, last=0.1)
    steps = 1020
    lr = torch.tensor([lin0.lr_at(k, steps) for k in range(steps)], dtype=torch.float64)
    assert lr[:20].tolist() == pytest.approx([2 * (k + 1) / 20 for k in range(20)])
    assert (lr[20:71] == 2).all()
    torch.testing.assert_close(lr[70:].diff(), torch.full((949,), -2 * 0.9 / 950).double())
    assert lin0.lr_at(steps, steps) == pytest.approx(0.2)


def test_a_cosine_falls_to_a_share() -> None:
    cosine = optim(lr=1.0, schedule="cosine", last=0.5)
    assert [cosine.lr_at(k, 4) for k in range(5)] == pytest.approx(
        [0.5 + 0.5 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(5)]
    )


def test_weight_decay_follows_a_cosine_and_spares_what_has_none() -> None:
    net = nn.Linear(3, 3)
    plan = optim(lr=1.0, weight_decay=0.05, last_weight_decay=0.08)
    optimizer = plan.build(net)
    seen = []
    for step in (0, 50, 100):
        plan.set(optimizer, step, 101)
        seen.append([group["weight_decay"] for group in optimizer.param_groups])
    assert seen == [pytest.approx([value, 0.0]) for value in (0.05, 0.065, 0.08)]
    constant = optim(lr=1.0, weight_decay=0.05)
    assert {constant.weight_decay_at(k, 101) for k in range(101)} == {0.05}


@pytest.mark.parametrize(
    "config",
    [
        VARConfig(num_classes=3, **SMALL),
        VARConfig(num_classes=3, shared_aln=True, **SMALL),
        MVARConfig(num_classes=3, state=4, scan_head=8, **SMALL),
    ],
)
def test_what_decays_of_a_next_scale_network(config: Any) -> None:
    """All but biases, vectors, positions, levels, modulations and scales; classes if asked."""
    net = config.build()
    names = {id(p): name for name, p in net.named_parameters()}

    def decayed(**fields: Any) -> set[str]:
        group = optim(weight_decay=0.1, **fields).build(net).param_groups[0]
        return {names[id(p)] for p in group["params"]}

    expected = {
        name
        for name, p in net.named_parameters()
        if p.squeeze().ndim > 1 and not UNDECAYED & set(name.split("."))
    }
    assert decayed(decayed_tables=["class_emb"]) == expected
    assert decayed() == expected - {"class_emb.weight"}
    assert {"class_emb.weight", "word_embed.weight", "head.weight"} <= expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hold": 1.0}, r"hold must be in \[0, 1\) and last in \[0, 1\], got 1.0, 0.0"),
        ({"last": 1.5}, r"hold must be in .* got 0.0, 1.5"),
        ({"last_weight_decay": 0.1}, "last_weight_decay and the weight_decay it starts from must"),
    ],
)
def test_refusals(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optim(**fields)


def test_a_table_that_is_not_there_is_named() -> None:
    net = VARConfig(num_classes=3, **SMALL).build()
    with pytest.raises(
        ValueError, match="no embedding is named 'class_embed'; it has class_emb, l"
    ):
        optim(decayed_tables=["class_embed"]).build(net)
