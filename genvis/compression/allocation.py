"""Which layer gets which of its possible formats, so that the loss is least within budgets.

    minimise  sum_l loss[l, c_l]   so that   least <= sum_l cost[l, c_l] <= most   for every budget

an integer program in x[l, c] in {0, 1}, sum_c x[l, c] = 1, solved to its proven optimum. Losses are
those of one layer at a time, so their sum stands for that of the whole: measure the result again.

Sources: Hubara et al. 2021, "Accurate Post Training Quantization With Small Calibration Sets", and
Yao et al. 2021, "HAWQ-V3" (the programs); Zhao et al. 2024, "MixDQ" (a program for each group of
layers). Solver: HiGHS, through scipy.
Letters: L layers, C choices, c_l the choice of layer l.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

GAP = 1e-9  # relative, between what was found and what is proven possible
SCALE = 1e3  # of the optimum in the solver, which stops at an absolute gap of 1e-6
ROW = 1e4  # of a budget in the solver, which lets a sum exceed it by 1e-6
RETRIES = 20  # for a sum that exceeds its budget by less than the solver resolves


@dataclass(frozen=True)
class Budget:
    """What all choices together may cost; cost (L, C) is what each layer pays for each choice."""

    name: str
    cost: Tensor
    most: float = math.inf
    least: float = -math.inf

    def spent(self, chosen: Sequence[int]) -> float:
        return _total(self.cost, chosen)

    def allows(self, chosen: Sequence[int]) -> bool:
        """Whether the sum lies within, up to the rounding of a sum of floats."""
        spent = self.spent(chosen)
        slack = 1e-12 * abs(spent)
        return self.least - slack <= spent <= self.most + slack


@dataclass(frozen=True)
class Allocation:
    """The choice of every layer, by number, and what all of them cost by the name of the budget."""

    chosen: tuple[int, ...]
    loss: float
    spent: dict[str, float]


def allocate(losses: Tensor, budgets: Sequence[Budget] = (), seconds: float = 60.0) -> Allocation:
    """The choices of least total loss; losses (L, C), infinite where a layer cannot have a choice.

    ValueError, with the least possible budget, if none fits, and if no optimum could be proven
    within so many seconds. Choices that are as good as each other may be taken for each other.
    """
    _check(losses, budgets)
    allowed = losses.isfinite()
    best = torch.where(allowed, losses, torch.inf).amin(1, keepdim=True)
    extra = torch.where(allowed, losses.double() - best, 0)  # over the layer's best choice
    relaxed = _solve(extra, allowed, budgets, whole=False)
    if relaxed.x is None:
        raise ValueError(_why_infeasible(allowed, budgets))
    bound = max(float(relaxed.fun), 1e-12 * float(extra.max()))
    scale = SCALE / bound if bound > 0 else 1.0
    excluded: list[Sequence[int]] = []
    for _ in range(RETRIES):
        found = _solve(extra * scale, allowed, budgets, excluded=excluded, seconds=seconds)
        if found.status == 2:
            raise ValueError(_why_infeasible(allowed, budgets))
        if found.x is None or found.mip_gap > GAP:
            raise ValueError(f"no choices were proven best within {seconds:g} seconds: allow more")
        chosen = tuple(found.x.reshape(losses.shape).argmax(1).tolist())
        if all(budget.allows(chosen) for budget in budgets):
            spent = {budget.name: budget.spent(chosen) for budget in budgets}
            return Allocation(chosen, _total(losses, chosen), spent)
        excluded.append(chosen)
    raise ValueError(f"{budgets[0].name}: choices differ by less than the solver can resolve")


def front(
    losses: Tensor, budget: Budget, levels: Iterable[float], others: Sequence[Budget] = ()
) -> list[Allocation]:
    """The Pareto front: the best allocations at rising levels of the budget's `most`, without those
    that lose to a cheaper one. ValueError as in `allocate`.
    """
    points: list[Allocation] = []
    for level in sorted(levels):
        found = allocate(losses, [replace(budget, most=level), *others])
        if not points or found.loss < points[-1].loss:
            points.append(found)
    return points


def levels(losses: Tensor, budget: Budget, count: int) -> list[float]:
    """`count` levels, evenly from the least possible cost to the one of the least loss."""
    if count < 2:
        raise ValueError(f"count must be at least 2, got {count}")
    low = _extreme(losses.isfinite(), budget.cost, 1)
    high = budget.spent(allocate(losses).chosen)
    return [low + (high - low) * k / (count - 1) for k in range(count)]


def allocate_groups(
    losses: Tensor, groups: Sequence[Sequence[int]], budgets: Sequence[Sequence[Budget]]
) -> Allocation:
    """Each group of layers by itself, within budgets of its own, whose cost is still (L, C) of all.

    For losses that cannot be added up, as of content and of quality. The loss is the sum over all
    layers, and spent the sum over the groups.
    """
    taken = sorted(layer for group in groups for layer in group)
    if taken != list(range(len(losses))) or len(groups) != len(budgets):
        raise ValueError(
            f"groups must hold each of the {len(losses)} layers once, and each needs its budgets"
        )
    chosen, spent = [0] * len(losses), dict[str, float]()
    for group, limits in zip(groups, budgets, strict=True):
        rows = torch.tensor(list(group))
        found = allocate(losses[rows], [replace(b, cost=b.cost[rows]) for b in limits])
        for layer, choice in zip(group, found.chosen, strict=True):
            chosen[layer] = choice
        for name, value in found.spent.items():
            spent[name] = spent.get(name, 0.0) + value
    return Allocation(tuple(chosen), _total(losses, chosen), spent)


def shared(total: float, sizes: Sequence[float], shares: Sequence[float]) -> list[float]:
    """A budget split among groups of these sizes: total * share * size / sum of share * size.

    MixDQ's targets of mean bits: with shares (k, 1) the first group has k times the second's.
    """
    whole = sum(share * size for share, size in zip(shares, sizes, strict=True))
    if min(*sizes, *shares) < 0 or whole <= 0:
        raise ValueError(f"sizes and shares must be positive, got {[*sizes]} and {[*shares]}")
    return [total * share * size / whole for share, size in zip(shares, sizes, strict=True)]


def _solve(
    objective: Tensor,
    allowed: Tensor,
    budgets: Sequence[Budget],
    *,
    whole: bool = True,
    excluded: Sequence[Sequence[int]] = (),
    seconds: float = 60.0,
) -> Any:
    """scipy's result; with `whole` False, of the linear relaxation."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    layers, choices = objective.shape
    rows, low, high = [np.ones(layers * choices)], [np.ones(layers)], [np.ones(layers)]
    for budget in budgets:
        size = max((abs(x) for x in (budget.most, budget.least) if math.isfinite(x)), default=0)
        size = size or max(1.0, float(budget.cost.abs().max()))
        unit = size / ROW
        rows.append((budget.cost.double() / unit).numpy().ravel())
        low.append(np.array([budget.least / unit]))
        high.append(np.array([budget.most / unit]))
    for chosen in excluded:
        mask = np.zeros((layers, choices))
        mask[np.arange(layers), list(chosen)] = 1
        rows.append(mask.ravel())
        low.append(np.array([-np.inf]))
        high.append(np.array([layers - 1]))
    # one row a layer, its ones side by side; then full rows
    columns = np.tile(np.arange(layers * choices), len(rows))
    starts = np.arange(layers) * choices, np.arange(1, len(rows) + 1) * layers * choices
    matrix = csr_array((np.concatenate(rows), columns, np.concatenate(starts)))
    return milp(
        objective.double().numpy().ravel(),
        constraints=LinearConstraint(matrix, np.concatenate(low), np.concatenate(high)),
        integrality=int(whole),
        bounds=Bounds(0, allowed.double().numpy().ravel()),
        options={"mip_rel_gap": 0, "time_limit": seconds},
    )


def _why_infeasible(allowed: Tensor, budgets: Sequence[Budget]) -> str:
    """One line with the least that would do."""
    for budget in budgets:
        low, high = (_extreme(allowed, budget.cost, sign) for sign in (1, -1))
        if low > budget.most:
            return f"{budget.name}: {budget.most:.12g} is below the least possible, {low:.12g}"
        if high < budget.least:
            return f"{budget.name}: {budget.least:.12g} is above the most possible, {high:.12g}"
    for i, budget in enumerate(budgets):
        others = [*budgets[:i], *budgets[i + 1 :]]
        size = float(budget.cost.abs().max()) or 1.0
        found = _solve(budget.cost / size, allowed, others)
        if found.x is not None and found.fun * size > budget.most:
            rest = ", ".join(other.name for other in others)
            return (
                f"{budget.name}: {budget.most:.12g} is below the least possible with {rest} as "
                f"given, {found.fun * size:.12g}"
            )
    ranges = ", ".join(f"{b.name} in [{b.least:.12g}, {b.most:.12g}]" for b in budgets)
    return f"no choices have {ranges}: widen the ranges"


def _check(losses: Tensor, budgets: Sequence[Budget]) -> None:
    if losses.ndim != 2 or not losses.numel() or losses.isnan().any() or (losses < 0).any():
        raise ValueError("losses must be (layers, choices), at least 0, and not NaN")
    if len(names := {budget.name for budget in budgets}) < len(budgets):
        raise ValueError(f"budgets must have different names, got {', '.join(sorted(names))}")
    for budget in budgets:
        if budget.cost.shape != losses.shape or not budget.cost.isfinite().all():
            raise ValueError(
                f"{budget.name}: costs must be finite and (layers, choices) {tuple(losses.shape)}"
            )
        if not budget.least <= budget.most:
            raise ValueError(f"{budget.name}: least {budget.least} is above most {budget.most}")
    without = (~losses.isfinite().any(1)).nonzero().flatten().tolist()
    if without:
        raise ValueError(f"layer {without[0]} can have none of the choices")


def _extreme(allowed: Tensor, cost: Tensor, sign: int) -> float:
    """The least that all layers can cost together, or with sign -1 the most."""
    return _total(cost, torch.where(allowed, sign * cost, torch.inf).argmin(1).tolist())


def _total(values: Tensor, chosen: Sequence[int]) -> float:
    return math.fsum(float(values[layer, choice]) for layer, choice in enumerate(chosen))
