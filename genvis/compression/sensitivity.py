"""How much the network suffers when one of its layers is given one of its possible formats: a table
layer x choice -> value, on disk, resumable, by any number of processes, the same whichever made it.

Layers are told apart by the metric that shows their harm (`Group`). A choice is a rule of a plan
under a name; its `match` says which layers may have it. The folder holds `run.json` (what was
measured on what), a file in `layers/` for each layer that is done, and at the end
`sensitivity.json`.

Source: Zhao et al. 2024, "MixDQ" (one layer at a time, by a metric for each group).
Letters: L layers, C choices.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from genvis.checkpoint import atomic_write, in_use, open_run, read_json
from genvis.compression import METRICS
from genvis.compression.fingerprint import fingerprint
from genvis.compression.layers import check_choices, fits, layers_of, quantized, swapped
from genvis.compression.metrics import Changed, Metric, Subject
from genvis.config import config, dump
from genvis.console import progress
from genvis.devices import processes
from genvis.quant.plan import Rule

TABLE, LAYERS = "sensitivity.json", "layers"


@config
class Group:
    """Layers and the metric of their harm. The first group that matches a layer has it."""

    name: str
    match: str  # a regular expression for the whole name of a layer
    metric: Annotated[Metric, METRICS]
    share: float = 1.0  # mean bits under a joint budget, over those of a group with share 1

    def __post_init__(self) -> None:
        try:
            re.compile(self.match)
        except re.error as error:
            raise ValueError(f"{self.match!r} is not a regular expression: {error}") from error
        if self.share <= 0:
            raise ValueError(f"share must be positive, got {self.share}")


@dataclass(frozen=True)
class Sensitivity:
    """values (L, C) of each layer's metric, NaN where the layer cannot have the choice; losses
    (L, C) >= 0 are what adds up over the layers of a group, infinite there. groups: the group of
    each layer, by number.
    """

    layers: tuple[str, ...]
    choices: tuple[str, ...]
    groups: tuple[int, ...]
    values: Tensor
    losses: Tensor

    def members(self, group: int) -> list[int]:
        """The layers of a group, by number."""
        return [layer for layer, own in enumerate(self.groups) if own == group]


def measure(
    subject: Subject,
    choices: Mapping[str, Rule],
    groups: Sequence[Group],
    folder: str | Path,
) -> Sensitivity:
    """The table in a folder, measured now as far as it is not there.

    ValueError, before any work, for choices or groups that do not fit the network, for a metric
    that the subject has nothing for, and for a folder of other weights, inputs, choices or groups.
    """
    if subject.net.training:
        raise ValueError("the network must be in evaluation mode")
    layers = layers_of(subject.net)
    own = grouped(list(layers), groups)
    check_choices(list(layers), choices)
    for group in groups:
        group.metric.check(subject)
    state = processes()
    with state.main_process_first():
        folder = open_run(folder, _identity(subject, choices, groups))
    with in_use(folder) if state.is_main_process else nullcontext():
        mine = list(layers)[state.process_index :: state.num_processes]
        _measure(subject, layers, mine, choices, [groups[own[n]] for n in mine], folder)
        state.wait_for_everyone()
        if state.is_main_process and not (folder / TABLE).exists():
            lines = [read_json(_part(folder, name)) for name in layers]
            atomic_write(folder / TABLE, json.dumps(lines, indent=1) + "\n")
        state.wait_for_everyone()
    return read(folder, choices, groups)


def read(folder: str | Path, choices: Mapping[str, Rule], groups: Sequence[Group]) -> Sensitivity:
    """A finished table. ValueError if it is not there, or not of these choices and groups."""
    lines = read_json(Path(folder) / TABLE)
    titles, names = tuple(choices), [group.name for group in groups]
    try:
        own = tuple(names.index(line["group"]) for line in lines)
        rows = [[line["values"][title] for title in titles] for line in lines]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{folder}: is of other choices or groups: {error}") from error
    losses = [
        [math.inf if value is None else groups[g].metric.loss(value) for value in row]
        for g, row in zip(own, rows, strict=True)
    ]
    values = [[math.nan if value is None else value for value in row] for row in rows]
    return Sensitivity(
        layers=tuple(line["layer"] for line in lines),
        choices=titles,
        groups=own,
        values=torch.tensor(values, dtype=torch.float64),
        losses=torch.tensor(losses, dtype=torch.float64),
    )


def grouped(names: Sequence[str], groups: Sequence[Group]) -> dict[str, int]:
    """The number of each layer's group. ValueError for a layer without one, a group without any."""
    if len({group.name for group in groups}) < len(groups):
        raise ValueError("groups must have different names")
    own: dict[str, int] = {}
    for name in names:
        found = (i for i, group in enumerate(groups) if re.fullmatch(group.match, name))
        number = next(found, None)
        if number is None:
            raise ValueError(f"groups: none matches the layer {name!r}")
        own[name] = number
    for i, group in enumerate(groups):
        if i not in own.values():
            raise ValueError(f"groups.{i}: {group.match!r} is left with no layer")
    return own


def _measure(
    subject: Subject,
    layers: Mapping[str, nn.Module],
    mine: Sequence[str],
    choices: Mapping[str, Rule],
    groups: Sequence[Group],
    folder: Path,
) -> None:
    references: dict[str, Any] = {}
    todo = [pair for pair in zip(mine, groups, strict=True) if not _part(folder, pair[0]).exists()]
    show = processes().is_main_process
    for name, group in progress(todo, f"measure {folder}", show=show):
        metric = group.metric
        if group.name not in references:
            references[group.name] = metric.reference(subject, layers)
        values: dict[str, float | None] = {}
        misfit: ValueError | None = None
        for title, rule in choices.items():
            values[title] = None
            if not fits(rule, name):
                continue
            try:
                after = quantized(subject.net, name, rule, subject.calls)
            except ValueError as error:  # such as inputs that are no multiple of a group's size
                misfit = error
                continue
            changed = Changed(name, layers[name], after)
            with swapped(subject.net, changed.before, changed.after):
                values[title] = metric.value(subject, references[group.name], changed)
        if misfit is not None and set(values.values()) == {None}:
            raise ValueError(f"{name}: none of the choices fits it: {misfit}") from misfit
        line = {
            "layer": name,
            "group": group.name,
            "metric": METRICS.name_of(metric),
            "values": values,
        }
        atomic_write(_part(folder, name), json.dumps(line))


def _part(folder: Path, name: str) -> Path:
    return folder / LAYERS / f"{name}.json"


def _identity(
    subject: Subject, choices: Mapping[str, Rule], groups: Sequence[Group]
) -> dict[str, Any]:
    return {
        "weights": fingerprint(subject.net.state_dict()),
        "calls": fingerprint(subject.calls),
        **subject.identity,
        "choices": {name: dump(rule) for name, rule in choices.items()},
        "groups": [dump(group) for group in groups],
    }
