"""The integer program against all possibilities and its laws; groups, the front, readable plans."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genvis.compression.allocation import (
    Allocation,
    Budget,
    allocate,
    allocate_groups,
    front,
    levels,
    shared,
)
from genvis.compression.rules import plan_of
from genvis.quant.integer import Integer
from genvis.quant.plan import Rule

BITS = torch.tensor([[2.0, 4.0, 6.0, 8.0]], dtype=torch.float64)


def instance(seed: int, layers: int) -> tuple[Tensor, Tensor]:
    """Sizes (L, 1) and losses (L, 4) that fall with the bits, over many orders of magnitude."""
    random = np.random.default_rng(seed)
    sizes = torch.tensor(random.integers(1, 2000, (layers, 1)), dtype=torch.float64)
    height = 10 ** torch.tensor(random.uniform(-6, 3, (layers, 1)))
    wobble = torch.tensor(random.uniform(0.5, 2, (layers, 4)))
    return sizes, height * wobble * 4.0**-BITS


def brute(losses: Tensor, budgets: list[Budget]) -> float | None:
    """The least loss of all combinations, None if none fits."""
    layers, choices = losses.shape
    every = np.array(list(itertools.product(range(choices), repeat=layers)))
    rows = np.arange(layers)
    totals = losses.numpy()[rows, every].sum(1)
    fits = np.isfinite(totals)
    for budget in budgets:
        spent = budget.cost.numpy()[rows, every].sum(1)
        fits &= (spent <= budget.most * (1 + 1e-12)) & (spent >= budget.least * (1 - 1e-12))
    return float(totals[fits].min()) if fits.any() else None


def test_the_program_equals_brute_force_on_a_thousand_instances() -> None:
    """With one budget or two, ranges, forbidden choices, and budgets met to the last bit."""
    infeasible = 0
    for seed in range(1000):
        random = np.random.default_rng(10_000 + seed)
        layers = int(random.integers(1, 6))
        sizes, losses = instance(seed, layers)
        if seed % 3 == 0:
            losses[torch.tensor(random.random((layers, 4)) < 0.2)] = torch.inf
            losses[:, 3] = losses[:, 3].nan_to_num(posinf=1.0)
        some = random.integers(0, 4, layers)
        cost = sizes * BITS
        exact = float(cost[torch.arange(layers), torch.tensor(some)].sum())
        budgets = [Budget("bits", cost, exact)]
        if seed % 2:
            work = torch.tensor(random.integers(1, 2000, (layers, 4)), dtype=torch.float64)
            budgets.append(Budget("work", work, float(work.sum() * random.uniform(0.1, 0.4))))
        if seed % 5 == 0:
            budgets[0] = Budget("bits", cost, exact * 1.05, exact * 0.95)
        best = brute(losses, budgets)
        if best is None:
            infeasible += 1
            with pytest.raises(ValueError, match=r"least possible|most possible|widen the ranges"):
                allocate(losses, budgets)
            continue
        found = allocate(losses, budgets)
        assert found.loss == pytest.approx(best, rel=1e-9), seed
        assert all(b.least <= found.spent[b.name] <= b.most for b in budgets), seed
    assert 20 < infeasible < 300  # both kinds were tried


def test_no_sum_is_over_its_budget_by_what_a_solver_tolerates() -> None:
    """Two layers of a billion weights, with a bit too little for the better pair."""
    cost = torch.tensor([[1e9, 2e9], [1e9, 2e9]], dtype=torch.float64)
    losses = torch.tensor([[5.0, 1.0], [3.0, 1.0]], dtype=torch.float64)
    assert allocate(losses, [Budget("bits", cost, 4e9)]).chosen == (1, 1)
    found = allocate(losses, [Budget("bits", cost, 4e9 - 1)])
    assert found.chosen == (1, 0)
    assert found.spent == {"bits": 3e9}


def test_losses_of_any_scale_are_solved_to_the_optimum() -> None:
    sizes, losses = instance(3, 5)
    budget = Budget("bits", sizes * BITS, float(sizes.sum()) * 4.4)
    chosen = allocate(losses, [budget]).chosen
    for scale in (1e-12, 1e-6, 1e6, 1e12):
        assert allocate(losses * scale, [budget]).chosen == chosen


def test_a_larger_budget_is_never_worse_and_the_front_is_what_pays() -> None:
    sizes, losses = instance(11, 12)
    budget = Budget("bits", sizes * BITS)
    grid = levels(losses, budget, 20)
    assert grid[0] == float(sizes.sum()) * 2
    assert grid[-1] == budget.spent(allocate(losses).chosen)
    found = [allocate(losses, [Budget("bits", budget.cost, most)]) for most in grid]
    assert all(b.loss <= a.loss for a, b in itertools.pairwise(found))
    assert all(each.spent["bits"] <= most for each, most in zip(found, grid, strict=True))
    points = front(losses, budget, [*grid, *grid])
    assert points[0].chosen == (0,) * 12
    assert points[-1].loss == pytest.approx(float(losses.amin(1).sum()))
    pairs = [(point.spent["bits"], point.loss) for point in points]
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in itertools.pairwise(pairs))


def test_mixed_formats_are_never_worse_than_a_uniform_one_at_its_bytes() -> None:
    for seed in range(20):
        sizes, losses = instance(seed, 8)
        for choice in range(4):
            budget = Budget("bits", sizes * BITS, float((sizes * BITS)[:, choice].sum()))
            assert allocate(losses, [budget]).loss <= float(losses[:, choice].sum()) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ([("bits", 3.0, -math.inf)], "bits: 3 is below the least possible, 4"),
        ([("bits", 99.0, 50.0)], "bits: 50 is above the most possible, 16"),
        (
            [("bits", 4.0, -math.inf), ("work", 4.0, -math.inf)],
            "bits: 4 is below the least possible with work as given, 16",
        ),
        ([("bits", 9.0, 7.0)], r"no choices have bits in \[7, 9\]: widen the ranges"),
        ([("bits", 1.0, 2.0)], "bits: least 2.0 is above most 1.0"),
        ([("bits", 9.0, 0.0), ("bits", 9.0, 0.0)], "budgets must have different names, got bits"),
    ],
)
def test_an_impossible_budget_says_what_is_possible(
    budgets: list[tuple[str, float, float]], message: str
) -> None:
    costs = {
        "bits": torch.tensor([[2.0, 8.0], [2.0, 8.0]], dtype=torch.float64),
        "work": torch.tensor([[8.0, 2.0], [8.0, 2.0]], dtype=torch.float64),
    }
    if message.startswith("no choices"):
        costs["bits"] = torch.tensor([[2.0, 8.0], [4.0, 8.0]], dtype=torch.float64)
    losses = torch.ones(2, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=message) as caught:
        allocate(losses, [Budget(name, costs[name], *ends) for name, *ends in budgets])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([[1.0, math.nan]], "at least 0, and not NaN"),
        ([[1.0, -1.0]], "at least 0, and not NaN"),
        ([], "must be .layers, choices."),
        ([[math.inf, math.inf]], "layer 0 can have none of the choices"),
    ],
)
def test_losses_that_are_none(losses: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        allocate(torch.tensor(losses))
    with pytest.raises(ValueError, match="costs must be finite and"):
        allocate(torch.ones(1, 2), [Budget("bits", torch.ones(2, 1))])


# groups


def test_groups_are_allocated_on_their_own() -> None:
    """Scaling one group's losses moves nothing in either."""
    sizes, losses = instance(5, 9)
    cost, members = sizes * BITS, [[0, 3, 4, 8], [1, 2, 5, 6, 7]]
    whole = [float(sizes[group].sum()) for group in members]
    totals = shared(4.5 * sum(whole), whole, (0.8, 1.0))
    assert sum(totals) == pytest.approx(4.5 * sum(whole))
    assert totals[0] / whole[0] == pytest.approx(0.8 * totals[1] / whole[1])
    budgets = [[Budget("bits", cost, total)] for total in totals]
    found = allocate_groups(losses, members, budgets)
    for group, (budget,) in zip(members, budgets, strict=True):
        rows = torch.tensor(group)
        alone = allocate(losses[rows], [Budget("bits", cost[rows], budget.most)])
        assert [found.chosen[i] for i in group] == list(alone.chosen)
    other = losses.clone()
    other[members[0]] *= 1e4
    assert allocate_groups(other, members, budgets).chosen == found.chosen
    assert found.spent["bits"] <= sum(totals)
    with pytest.raises(ValueError, match="groups must hold each of the 9 layers once"):
        allocate_groups(losses, [[0], [1]], budgets)
    with pytest.raises(ValueError, match="sizes and shares must be positive"):
        shared(1.0, (1.0, 2.0), (-1.0, 1.0))


# plans


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"fc1": nn.Linear(8, 8), "fc2": nn.Linear(8, 8)}) for _ in range(12)
        )
        self.down = nn.ModuleList(
            nn.ModuleList(nn.Linear(8, 8) for _ in range(2)) for _ in range(2)
        )
        self.head = nn.Linear(8, 5)


W8, W4, PLAIN = (
    Rule(match="any", weight=Integer(bits=8)),
    Rule(match="any", weight=Integer(bits=4)),
    Rule(match="any", weight=None),
)


def test_a_plan_of_single_layers_reads_as_rules_and_means_the_same() -> None:
    names = ["stem", *[f"blocks.{i}.fc{k}" for i in range(12) for k in (1, 2)]]
    names += ["down.0.0", "down.0.1", "down.1.0", "down.1.1", "head"]
    chosen = dict.fromkeys(names, W4) | {"head": PLAIN, "stem": W8}
    chosen |= {"blocks.1.fc2": W8, "blocks.11.fc2": W8, "blocks.2.fc2": PLAIN}
    chosen |= {"down.0.1": W8, "down.1.0": W8}
    plan = plan_of(chosen)
    found = plan.assignments(Net())
    assert found.keys() == chosen.keys()
    for name, rule in chosen.items():
        own = found[name]
        assert own is not None
        assert (own.weight, own.act) == (rule.weight, rule.act), name
    matches = [rule.match for rule in plan.rules]
    assert matches == [
        "stem",
        r"blocks\.\d+\.fc1",
        r"blocks\.(1|11)\.fc2",
        r"blocks\.2\.fc2",
        r"blocks\.\d+\.fc2",
        r"down\.0\.1|down\.1\.0",
        r"down\.\d+\.\d+",
        "head",
    ]


def test_an_allocation_says_what_it_takes() -> None:
    losses = torch.tensor([[3.0, 1.0], [2.0, 0.5]])
    cost = torch.tensor([[1.0, 2.0], [1.0, 4.0]])
    budgets = [Budget("bytes", cost, 5.0), Budget("free", 0 * cost)]
    expected = Allocation(chosen=(1, 0), loss=3.0, spent={"bytes": 3.0, "free": 0.0})
    assert allocate(losses, budgets) == expected
