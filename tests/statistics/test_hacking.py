"""The warning of verifier hacking: it comes where the judge's score falls, and seldom by chance."""

import pytest
import torch
from torch import Tensor

from genvis.random import HashKeys
from genvis.search.hacking import hacking, interval

N = 60


def scores(verifier: Tensor, judge: Tensor) -> dict[str, list[float]]:
    return {"verifier": verifier.tolist(), "judge": judge.tolist()}


def study(seed: int, fall: float, budgets: tuple[int, ...] = (1, 4, 16)) -> str | None:
    """Images differ by 1, pairs of one image by 0.5; the verifier gains 1 a budget, the judge loses
    `fall` at the last.
    """
    noise = HashKeys.of(seed, range(N)).normal((2 * len(budgets) + 1,)).double()
    base, rest = noise[:, 0], 0.5 * noise[:, 1:]
    rows = [
        {
            "budget": b,
            **scores(
                base + i + rest[:, i],
                base - fall * (b == budgets[-1]) + rest[:, len(budgets) + i],
            ),
        }
        for i, b in enumerate(budgets)
    ]
    return hacking(scores(base - 1, base), rows)


def test_a_fall_is_told_with_its_interval() -> None:
    told = study(0, fall=1.0)
    assert told is not None
    assert told.startswith("verifier hacking: from ")
    assert "to budget 16" in told
    assert "\n" not in told


def test_a_judge_that_does_not_change_is_seldom_warned_of() -> None:
    """At most 5 % in theory; of 200 searches with three standard errors on top."""
    warned = sum(study(seed, fall=0.0) is not None for seed in range(200))
    assert warned / 200 < 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5


def test_a_search_that_gains_nothing_is_no_hacking() -> None:
    x = HashKeys.of(1, range(N)).normal((1,))[:, 0].double()
    assert hacking(scores(x, x), [{"budget": 4, **scores(x, x - 1)}]) is None  # the verifier stays
    assert hacking(scores(x, x), [{"budget": 4, **scores(x + 1, x + 1)}]) is None  # both rise


def test_one_image_says_nothing() -> None:
    one = scores(torch.zeros(1), torch.zeros(1))
    assert hacking(one, [{"budget": 2, **scores(torch.ones(1), -torch.ones(1))}]) is None


def test_an_interval_covers_the_mean() -> None:
    x = HashKeys.of(3, range(1000)).normal((8,)).double()
    inside = [low < 0 < high for low, _, high in (interval(row.tolist()) for row in x)]
    assert sum(inside) / 1000 == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / 1000) ** 0.5)
