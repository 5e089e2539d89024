"""MixDQ's allocation of bits, and the metrics of its sensitivities: parts of the kind mixdq."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from golden_case import Case
from torch import Tensor

from genvis.compression.allocation import Allocation, Budget, allocate, allocate_groups, shared
from genvis.compression.metrics import mse, ssim
from genvis.quant.report import sqnr

WIDTH = 0.02  # of mean bits, to both sides of a target
LOSS = (0.0, 1e-9)


def allocation(case: Case) -> None:
    spec = case.spec
    if "cases" in spec and "rule" in spec:
        groups(case)
    elif "cases" in spec:
        small(case)
    elif "candidates" in spec:
        joint(case)
    elif "loss" in case.tensors("in/"):
        large(case)
    else:
        case.unclaimed("an allocation of another form")


def small(case: Case) -> None:
    """One bit width a layer within a budget of bits."""
    bits, layers = case.spec["candidate_bits"], case.spec["layers"]
    losses = table([[layer["loss"][str(b)] for b in bits] for layer in layers])
    cost = column(layers, "params") * table([bits])
    for i, each in enumerate(case.spec["cases"]):
        found = allocate(losses, [Budget("bits", cost, each["budget_bits"])])
        expect(case, f"{i}/bits", [bits[c] for c in found.chosen], each["optimal_bits"], (0, 0))
        expect(case, f"{i}/loss", found.loss, each["optimal_loss"], LOSS)
        expect(case, f"{i}/used", found.spent["bits"], each["used_bits"], LOSS)


def joint(case: Case) -> None:
    """A pair of widths, of weights and activations, within budgets of bits and bit operations."""
    spec, layers = case.spec, case.spec["layers"]
    pairs = [re.fullmatch(r"w(\d+)a(\d+)", name) for name in spec["candidates"]]
    weights, acts = (table([[float(pair[i]) for pair in pairs if pair]]) for i in (1, 2))
    losses = table([[layer["loss"][name] for name in spec["candidates"]] for layer in layers])
    memory = Budget("bits", column(layers, "params") * weights, spec["budget_weight_bits"])
    compute = Budget("bops", column(layers, "macs") * weights * acts, spec["budget_bops"])
    found = allocate(losses, [memory, compute])
    wanted = [spec["candidates"].index(name) for name in spec["optimal"]]
    expect(case, "chosen", found.chosen, wanted, (0, 0))
    expect(case, "loss", found.loss, spec["optimal_loss"], LOSS)
    expect(case, "bits", found.spent["bits"], spec["used_weight_bits"], LOSS)
    expect(case, "bops", found.spent["bops"], spec["used_bops"], LOSS)


def large(case: Case) -> None:
    """Any choice within the budgets may do as well as the recorded one, which takes more than a
    budget by up to the tolerance of the solver that made it: so it is compared at what it takes.
    """
    given, bits = case.tensors("in/"), table([case.spec["candidate_bits"]])
    costs = given["params"][:, None] * bits, given["macs"][:, None] * bits * 8
    exact = [
        Budget(name, cost, most)
        for name, cost, most in zip(("bits", "bops"), costs, case.spec["budgets"], strict=True)
    ]
    recorded = [budget.spent(case.expected["choice"].tolist()) for budget in exact]
    as_recorded = [
        replace(budget, most=max(budget.most, spent))
        for budget, spent in zip(exact, recorded, strict=True)
    ]
    found = allocate(given["loss"], as_recorded)
    expect(case, "loss", found.loss, case.spec["optimal_loss"], (0, 1e-6))
    strict = allocate(given["loss"], exact)
    for budget, spent in zip(exact, recorded, strict=True):
        over = max(0.0, strict.spent[budget.name] - budget.most)
        expect(case, f"{budget.name} over the budget", over, 0.0, (0, 0))
        if spent > budget.most * (1 + 1e-6):
            case.unclaimed(f"the recorded choice takes {spent} of {budget.most} {budget.name}")
    case.omit("choice", "any choice as good passes")


def groups(case: Case) -> None:
    """Content and quality by themselves, each with a mean width near its target."""
    spec, layers = case.spec, case.spec["layers"]
    bits = sorted({b for group in spec["candidate_bits"].values() for b in group})
    names = list(spec["candidate_bits"])  # content, quality
    members = [[i for i, x in enumerate(layers) if x["group"] == name] for name in names]
    for i, layer in enumerate(layers):
        content = bool(re.search(r"ff|attn2", layer["name"]))
        assert (layer["group"] == "content") == content, i
    scores = table(
        [
            [
                layer["sensitivity"][str(b)]
                if b in spec["candidate_bits"][layer["group"]]
                else -math.inf
                for b in bits
            ]
            for layer in layers
        ]
    )
    losses = scores.amax(1, keepdim=True) - scores
    size = column(layers, "size")
    whole = [float(size[group].sum()) for group in members]
    expect(case, "rho", whole[0] / whole[1], spec["rho"], LOSS)
    for each in spec["cases"]:
        k = each["k"]
        totals = shared(spec["average_bits"] * sum(whole), whole, (k, 1.0))
        found = allocate_groups(
            losses,
            members,
            [
                [Budget("bits", size * table([bits]), total + WIDTH * s, total - WIDTH * s)]
                for total, s in zip(totals, whole, strict=True)
            ],
        )
        for g, name in enumerate(names):
            one = f"{k}/{name}"
            target = totals[g] / whole[g]
            expect(case, f"{one}/target", target, each[f"{name}_target"], LOSS)
            group_of(case, one, each[name], found, layers, members[g], bits, scores)


def group_of(
    case: Case,
    name: str,
    wanted: dict[str, Any],
    found: Allocation,
    layers: Sequence[dict[str, Any]],
    members: Sequence[int],
    bits: Sequence[int],
    scores: Tensor,
) -> None:
    widths = {layers[i]["name"]: bits[found.chosen[i]] for i in members}
    score = math.fsum(float(scores[i, found.chosen[i]]) for i in members)
    expect(case, f"{name}/objective", score, wanted["objective"], LOSS)
    if wanted["objective"] > wanted["second_best"] + 1e-9:
        expected = [wanted["bits"][layer] for layer in widths]
        expect(case, f"{name}/bits", list(widths.values()), expected, (0, 0))


def metrics(case: Case) -> None:
    given, spec = case.tensors("in/"), case.spec
    images = [given[f"image_{x}"].movedim(-1, 0)[None] for x in "ab"]
    for window, value in spec["ssim"].items():
        expect(case, f"ssim/{window}", ssim(*images, window=int(window)), value, (1e-5, 0))
    outputs = given["output_fp"], given["output_q"]
    expect(case, "sqnr_db", sqnr(*outputs), spec["sqnr_db"], (1e-4, 0))
    expect(case, "mse", mse(*outputs), spec["mse"], (0, 1e-5))


def expect(case: Case, name: str, found: Any, wanted: Any, tolerance: tuple[float, float]) -> None:
    case.expect(name, torch.as_tensor(wanted, dtype=torch.float64))
    case.compare(name, torch.as_tensor(found, dtype=torch.float64), None, tolerance)


def table(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def column(layers: Sequence[dict[str, Any]], key: str) -> Tensor:
    return table([[layer[key]] for layer in layers])
