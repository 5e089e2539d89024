"""take, repeat and to: rows of any nest move together."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from genvis.random import HashKeys
from genvis.types import Cond, Cost, Moments, repeat, take, to


@dataclass(frozen=True)
class Trajectory:
    x: Tensor
    clock: Tensor
    memory: tuple[Tensor, ...]
    cond: Cond
    keys: HashKeys
    logs: dict[str, Tensor]
    k: int = 3


def trajectory(batch: int = 4) -> Trajectory:
    rows = torch.arange(batch)
    return Trajectory(
        x=rows[:, None].float() * torch.ones(3),
        clock=torch.tensor(0.5),
        memory=(rows.clone(), rows[:, None, None].expand(batch, 2, 5)),
        cond=Cond(label=rows, prompts=tuple("abcd"[:batch]), known=(rows, rows > 1)),
        keys=HashKeys.of(0, range(batch)),
        logs={"loss": rows.double()},
    )


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (torch.tensor([2, 0, 2]), [2, 0, 2]),
        (torch.tensor([False, True, False, True]), [1, 3]),
        (slice(1, 3), [1, 2]),
        (torch.tensor([], dtype=torch.int64), []),
    ],
)
def test_take_moves_every_leaf(rows: Any, expected: list[int]) -> None:
    whole = trajectory()
    part = take(whole, rows)
    assert part.x[:, 0].tolist() == expected
    assert part.memory[1][:, 0, 0].tolist() == expected
    assert part.memory[0].tolist() == part.cond.label.tolist() == expected  # type: ignore[union-attr]
    assert part.cond.prompts == tuple("abcd"[i] for i in expected)
    assert part.cond.known is not None
    assert part.cond.known[0].tolist() == expected
    assert part.logs["loss"].tolist() == expected
    assert torch.equal(part.keys.h, whole.keys.h[expected])
    assert part.clock is whole.clock
    assert part.k == 3
    assert part.cond.text is None


def test_take_leaves_the_original_alone() -> None:
    whole = trajectory()
    take(whole, torch.tensor([1])).x.mul_(0)
    assert whole.x[1].tolist() == [1.0, 1.0, 1.0]


def test_repeat_keeps_neighbours_together() -> None:
    many = repeat(trajectory(2), 3)
    assert many.x[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert many.cond.prompts == ("a", "a", "a", "b", "b", "b")
    assert torch.equal(many.keys.h, trajectory(2).keys.h.repeat_interleave(3))
    again = take(many, torch.tensor([0, 3]))
    assert torch.equal(again.memory[1], trajectory(2).memory[1])


def test_to_moves_leaves_but_not_clocks() -> None:
    moved = to(trajectory(), "meta")
    assert moved.x.is_meta
    assert moved.memory[1].is_meta
    assert moved.cond.label is not None
    assert moved.cond.label.is_meta
    assert not moved.clock.is_meta
    assert moved.cond.prompts == tuple("abcd")


def test_dropped_is_the_twin_without_a_condition() -> None:
    cond = Cond(label=torch.tensor([3, 4]))
    twin = cond.dropped()
    assert twin.drop is not None
    assert twin.drop.tolist() == [True, True]
    assert cond.drop is None
    negative = Cond(label=torch.tensor([0, 0]))
    assert Cond(label=torch.tensor([3, 4]), negative=negative).dropped() is negative
    words = Cond(prompts=("a cat", "a dog")).dropped()
    assert words.drop is not None
    assert len(words.drop) == len(words) == 2


def test_cost_adds_and_scales() -> None:
    total = Cost(evaluations=2, decodes=1) + Cost(evaluations=1, verifications=4) * 3
    assert (total.evaluations, total.decodes, total.verifications) == (5, 1, 12)


def test_moments_sample_around_the_mode() -> None:
    keys = HashKeys.of(0, range(2))
    mean = torch.full((2, 3), 5.0)
    assert torch.equal(Moments(mean).sample(keys), mean)
    drawn = Moments(mean, torch.full((2, 3), 2.0)).sample(keys)
    torch.testing.assert_close((drawn - mean) / 2, keys.normal((3,)))
