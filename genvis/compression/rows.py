"""What a network is called with, many rows of it, whichever kind of network it is.

A denoiser's inputs are (x_t, t, cond), a next-scale network's (x, cond) of all scales at once, and
either is `net(*inputs)`. Only what a network can read of a condition is kept: of the negative one
its text, and that only where rows are dropped.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from genvis.checkpoint import load_tensors, save_tensors
from genvis.types import Cond, join, take

Call = tuple[Any, ...]  # tensors and conditions, batch-first
TEXT = ("text", "text_mask", "pooled")
READ = ("label", *TEXT, "drop")  # of a condition


@dataclass(frozen=True)
class Rows:
    """Rows of calls that have the same shapes are together: of each group its tensors by name."""

    groups: tuple[Mapping[str, Tensor], ...]

    @classmethod
    def of(cls, calls: Iterable[Call]) -> Self:
        groups: dict[Any, list[dict[str, Tensor]]] = {}
        for call in calls:
            named = flat(call)
            shape = tuple((name, leaf.shape[1:], leaf.dtype) for name, leaf in named.items())
            groups.setdefault(shape, []).append(named)
        return cls(tuple(map(join, groups.values())))

    def __len__(self) -> int:
        return sum(len(next(iter(group.values()))) for group in self.groups)

    def calls(self, size: int, device: torch.device | str = "cpu") -> Iterator[Call]:
        """Arguments for the network, at most `size` rows at a time."""
        for group in self.groups:
            for start in range(0, len(next(iter(group.values()))), size):
                named = take(group, slice(start, start + size))
                yield nested({name: leaf.to(device) for name, leaf in named.items()})

    def save(self, path: str | Path) -> None:
        tensors = {
            f"{i}/{k}": leaf for i, group in enumerate(self.groups) for k, leaf in group.items()
        }
        save_tensors(path, tensors)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """ValueError if the file is missing or damaged."""
        groups: dict[int, dict[str, Tensor]] = {}
        for name, leaf in load_tensors(path).items():
            number, _, rest = name.partition("/")
            groups.setdefault(int(number), {})[rest] = leaf
        return cls(tuple(dict(sorted(groups[i].items())) for i in sorted(groups)))


def flat(call: Call) -> dict[str, Tensor]:
    """Its tensors by name: argument 0 as "0", a condition's label as "2.label"."""
    named: dict[str, Tensor] = {}
    for i, value in enumerate(call):
        if isinstance(value, Tensor):
            named[str(i)] = value
            continue
        kept = {name: getattr(value, name) for name in READ}
        if kept["drop"] is None:  # said, so that both halves of a guided call are of one kind
            kept["drop"] = torch.zeros(len(value), dtype=torch.bool)
        elif value.negative is not None:
            kept |= {f"negative.{name}": getattr(value.negative, name) for name in TEXT}
        named |= {f"{i}.{name}": leaf for name, leaf in kept.items() if leaf is not None}
    return dict(sorted(named.items()))


def nested(named: Mapping[str, Tensor]) -> Call:
    """The arguments that `flat` named."""
    arguments: dict[int, Any] = {}
    for name, leaf in named.items():
        number, _, field = name.partition(".")
        if field:
            arguments.setdefault(int(number), {})[field] = leaf
        else:
            arguments[int(number)] = leaf
    ordered = (arguments[i] for i in sorted(arguments))
    return tuple(_cond(value) if isinstance(value, dict) else value for value in ordered)


def _cond(leaves: Mapping[str, Tensor]) -> Cond:
    own: dict[str, Any] = {name: leaf for name, leaf in leaves.items() if name in READ}
    other: dict[str, Any] = {name: leaves.get(f"negative.{name}") for name in TEXT}
    return Cond(**own, negative=None if other["text"] is None else Cond(**other))
