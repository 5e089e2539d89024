"""A plan of mixed formats, found: what each layer suffers from each of its choices is measured, and
an integer program chooses under budgets.

The folder holds `sensitivity/` (resumable, see `genvis.compression.sensitivity`) and `plan.yaml`
with `allocation.json` beside it in `allocation/`: the choice of every layer, the sum of their
losses and what they cost.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from genvis.checkpoint import atomic_write, in_use, open_run
from genvis.compression.allocation import Budget, allocate_groups, shared
from genvis.compression.costs import bit_operations, file_bytes, seconds
from genvis.compression.layers import Calls, fits
from genvis.compression.metrics import SQNR, Subject
from genvis.compression.rules import plan_of
from genvis.compression.sensitivity import Group, Sensitivity, measure
from genvis.config import config, dump, load, write_yaml
from genvis.data import DATASETS
from genvis.devices import processes
from genvis.objectives import OBJECTIVES
from genvis.quant.execution import Execution
from genvis.quant.plan import Plan, Rule
from genvis.quant.products import products
from genvis.random import HashKeys
from genvis.samplers.base import BaseGenerator
from genvis.samplers.folder import Sampling
from genvis.samplers.generate import generate, in_turn
from genvis.types import DatasetConfig, Objective, to

PLAN, FOUND = "plan.yaml", "allocation.json"
Cost = Literal["bytes", "bit_operations", "seconds"]
EVERYTHING = (Group(name="all", match=".*", metric=SQNR()),)


@config
class Examples:
    """What the Hessian of a training loss is taken on: the first examples of the training data."""

    data: Annotated[DatasetConfig, DATASETS]
    objective: Annotated[Objective, OBJECTIVES]
    count: int = 64

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")


@config
class Mixed:
    """choices: rules by a name of ours; each is for the layers that its `match` fits.

    budgets: the most of each kind of cost, as a number, or as the name of a choice: what its cost
    would be if all layers had it (one that cannot counts with the dearest that it can have).
    execution: back-ends that must run every chosen layer, and that `seconds` are measured on.
    images: how many are drawn where a group is measured on them. examples: for the metric hessian.
    """

    choices: dict[str, Rule]
    groups: tuple[Group, ...] = EVERYTHING
    budgets: dict[Cost, float | str]
    execution: Execution | None = None
    images: int = 16
    examples: Examples | None = None

    def __post_init__(self) -> None:
        if not self.choices or not self.budgets or self.images < 1:
            raise ValueError("choices and budgets must have at least one, images be at least 1")
        for kind, most in self.budgets.items():
            if isinstance(most, str) and most not in self.choices:
                known = ", ".join(self.choices)
                raise ValueError(f"budgets.{kind}: {most!r} is none of the choices {known}")

    def plan(
        self,
        generator: BaseGenerator,
        calls: Calls,
        folder: str | Path,
        source: str,
        prompts: tuple[str, ...] | None = None,
    ) -> Plan:
        """The plan in a folder, found now as far as it is not there.

        calls: what the backbone is shown; prompts: what images show, of a model that is told in
        words. `source` identifies the weights. ValueError if no choices fit the budgets, and for
        what `sensitivity.measure` refuses.
        """
        subject = self._subject(generator, tuple(calls), prompts)
        table = measure(subject, self.choices, self.groups, Path(folder, "sensitivity"))
        with processes().main_process_first():
            made = open_run(Path(folder, "allocation"), {"source": source, **dump(self)})
            if not (made / FOUND).exists():
                with in_use(made):
                    self._allocate(subject, table, made)
        return load(Plan, made / PLAN)

    def _allocate(self, subject: Subject, table: Sensitivity, folder: Path) -> None:
        losses = table.losses.clone()
        if self.execution is not None:
            losses[~self._runnable(subject, table)] = torch.inf
        members = [table.members(group) for group in range(len(self.groups))]
        shares = [group.share for group in self.groups]
        limits: list[list[Budget]] = [[] for _ in members]
        for kind in self.budgets:
            cost = self._cost(kind, subject, table)
            dearest = [float(cost[rows].amax(1).sum()) for rows in members]
            parts = shared(self._most(kind, cost, losses.isfinite()), dearest, shares)
            for limit, part in zip(limits, parts, strict=True):
                limit.append(Budget(kind, cost, part))
        found = allocate_groups(losses, members, limits)
        titles = {
            layer: table.choices[choice]
            for layer, choice in zip(table.layers, found.chosen, strict=True)
        }
        plan = plan_of({layer: self.choices[title] for layer, title in titles.items()})
        record = {"loss": found.loss, "spent": found.spent, "chosen": titles}
        atomic_write(folder / PLAN, write_yaml(dump(plan)))
        atomic_write(folder / FOUND, json.dumps(record, indent=1) + "\n")

    def _runnable(self, subject: Subject, table: Sensitivity) -> Tensor:
        """(L, C): which layers under which choices the back-ends have kernels for."""
        rows = []
        for name in table.layers:
            row = []
            for rule in self.choices.values():
                row.append(fits(rule, name) and self._runs(subject, name, rule))
            rows.append(row)
        return torch.tensor(rows)

    def _runs(self, subject: Subject, name: str, rule: Rule) -> bool:
        layer: Any = subject.net.get_submodule(name)
        try:
            made = rule.quantize(layer)  # no data, on which no format depends
            if self.execution is not None and products(made):
                self.execution.place(made)
        except ValueError:  # it does not fit, or no back-end takes it
            return False
        return True

    def _cost(self, kind: Cost, subject: Subject, table: Sensitivity) -> Tensor:
        given = subject.net, table.layers, self.choices
        if kind == "bytes":
            return file_bytes(*given)
        if kind == "bit_operations":
            return bit_operations(*given, subject.calls)
        return seconds(*given, subject.calls, executed=self._executed)

    def _executed(self, layer: nn.Module) -> nn.Module:
        if self.execution is None or not products(layer):
            return layer
        return self.execution.apply(layer)

    def _most(self, kind: Cost, cost: Tensor, allowed: Tensor) -> float:
        most = self.budgets[kind]
        if not isinstance(most, str):
            return most
        own = list(self.choices).index(most)
        dearest = torch.where(allowed, cost, 0).amax(1)
        return float(torch.where(allowed[:, own], cost[:, own], dearest).sum())

    def _subject(
        self,
        generator: BaseGenerator,
        calls: tuple[Any, ...],
        prompts: tuple[str, ...] | None,
    ) -> Subject:
        sampling = Sampling(
            sampler=generator.choice(), count=self.images, prompts=prompts, chunk=self.images
        )
        rows = range(self.images)

        def images() -> Tensor:
            cond = in_turn(sampling.things(generator), rows)
            return generate(generator.sampler(), cond, sampling.keys(rows), sampling.chunk)

        identity = {"sampling": dump(sampling), "examples": self.examples and dump(self.examples)}
        return Subject(generator.backbone, calls, images, self._loss(generator), identity)

    def _loss(self, generator: BaseGenerator) -> Callable[[], Tensor] | None:
        if self.examples is None:
            return None
        rows = range(self.examples.count)
        batch = to(self.examples.data.build("train")[rows], generator.device)
        measured = self.examples.objective.build(generator)
        keys = HashKeys.of(0, rows, generator.device).fold("examples")
        return lambda: measured(generator.net, batch, keys).per_sample.mean()
