"""What extractors and scorers see of a set of images, chunk by chunk, by any number of processes.

Chunk k (rows k c to (k + 1) c) is read, looked at and written to `parts/` by process k modulo their
number, with the last one padded to c rows: what a row gives is a function of the row and c alone. A
part is whole or absent, so a killed evaluation goes on where it stopped. All that is kept of an
image are its features, labels and hash; statistics stream over the parts, and are the same to the
last bit whoever made them.
Letters: N images, B rows of a chunk, c chunk size, G groups.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from genvis.checkpoint import in_use, load_tensors, open_run, save_tensors
from genvis.console import progress
from genvis.devices import processes
from genvis.evaluation.extraction import HeadedExtractor, full_float32
from genvis.evaluation.jackknife import random_groups
from genvis.evaluation.sources import Images
from genvis.evaluation.statistics import Statistics, check_features
from genvis.images import from_uint8
from genvis.types import Cond, to

BLOCK = 4096  # rows that enter a covariance at once


class Observer(Protocol):
    """Looks at a chunk: pixels (B, 3, H, W) uint8 -> named rows (B, ...). `rows`: its numbers. One
    that reads prompts has `check` too.
    """

    @property
    def identity(self) -> dict[str, Any]: ...
    def __call__(self, pixels: Tensor, cond: Cond, rows: range) -> Mapping[str, Tensor]: ...


@runtime_checkable
class ReadsPrompts(Protocol):
    def check(self, prompts: Sequence[str] | None) -> None:
        """ValueError for prompts that it cannot judge images by, and for none."""
        ...


def check_prompts(images: Images, observers: Sequence[Observer]) -> None:
    """ValueError for prompts that would be refused only once their images are made."""
    if hasattr(images, "said"):
        for observer in observers:
            if isinstance(observer, ReadsPrompts):
                observer.check(images.said)


@dataclass(frozen=True)
class Seen:
    """What was seen of N images, read from the parts when it is asked for."""

    parts: tuple[Path, ...]
    n: int
    extractor: str
    sha256: str
    resize: str
    _known: dict[tuple[str, int], tuple[Statistics, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def names(self) -> set[str]:
        return set(load_part(self.parts[0]))

    def rows(self, name: str) -> Tensor:
        """All rows (N, ...) under a name. ValueError if nothing gave them."""
        return torch.cat([self._part(path, name) for path in self.parts])

    def statistics(self, head: str) -> Statistics:
        return reduce(add, self.groups(head, 1))

    def groups(self, head: str, groups: int) -> tuple[Statistics, ...]:
        """Statistics of a head for each of G random groups of rows."""
        if (head, groups) not in self._known:
            self._known[head, groups] = self._streamed(head, groups)
        return self._known[head, groups]

    def _streamed(self, head: str, groups: int) -> tuple[Statistics, ...]:
        member, device = random_groups(self.n, groups), processes().device
        totals: dict[int, Statistics] = {}
        for rows, block in self._blocks(head):
            own, values = member[rows].to(device), block.to(device)
            for g in range(groups):
                now = Statistics.of(values[own == g], self.sha256)
                totals[g] = totals[g] + now if g in totals else now
        return tuple(to(totals[g], "cpu") for g in range(groups))

    def _blocks(self, head: str) -> Iterator[tuple[slice, Tensor]]:
        """All rows in order, `BLOCK` of them or a few more at a time."""
        start, waiting = 0, []
        for path in self.parts:
            waiting.append(self._part(path, head))
            held = sum(map(len, waiting))
            if held >= BLOCK or path == self.parts[-1]:
                yield slice(start, start + held), torch.cat(waiting)
                start, waiting = start + held, []

    @property
    def images_sha256(self) -> str:
        """One hash for the set, from those of its images in order."""
        return hashlib.sha256(self.rows("sha256").numpy().tobytes()).hexdigest()

    def _part(self, path: Path, name: str) -> Tensor:
        tensors = load_part(path)
        if name not in tensors:
            known = ", ".join(sorted(set(tensors) - {"sha256"}))
            raise ValueError(f"{self.extractor} gives no {name}; there are {known}")
        return tensors[name]


def load_part(path: Path) -> dict[str, Tensor]:
    """What a part holds. ValueError if it is damaged."""
    try:
        return load_tensors(path)
    except ValueError as error:
        raise ValueError(f"{error}; delete this file and run the evaluation again") from error


@dataclass(frozen=True)
class Heads:
    """An extractor as an observer: all of its heads."""

    extractor: HeadedExtractor

    @property
    def identity(self) -> dict[str, Any]:
        known = self.extractor
        return {"extractor": known.name, "sha256": known.sha256, "resize": known.resize}

    def __call__(self, pixels: Tensor, cond: Cond, rows: range) -> dict[str, Tensor]:
        images = from_uint8(pixels.to(processes().device))
        found = {name: rows.cpu() for name, rows in self.extractor.heads(images).items()}
        check_features(found["features"])
        return found


def observe(
    images: Images,
    extractor: HeadedExtractor,
    folder: str | Path,
    *,
    chunk: int = 64,
    observers: Sequence[Observer] = (),
) -> Seen:
    """Everything about N images in `folder`, made now as far as it is not there.

    ValueError if the folder holds an evaluation of other images or by other observers.
    """
    state, n = processes(), len(images)
    watching = [Heads(extractor.to(state.device)), *observers]
    config = {"images": images.identity, "chunk": chunk, "by": [each.identity for each in watching]}
    with state.main_process_first():
        folder = open_run(folder, config)
    starts = range(0, n, chunk)
    parts = tuple(folder / "parts" / f"{start:09d}.safetensors" for start in starts)
    mine = range(state.process_index, len(parts), state.num_processes)
    with in_use(folder) if state.is_main_process else nullcontext():
        for k in progress(mine, f"evaluate {folder}", show=state.is_main_process):
            if not parts[k].exists():
                rows = range(n)[starts[k] : starts[k] + chunk]
                save_tensors(parts[k], _look(images, rows, chunk, watching))
        state.wait_for_everyone()
    return Seen(parts, n, extractor.name, extractor.sha256, extractor.resize)


def _look(images: Images, rows: range, chunk: int, watching: Sequence[Observer]) -> dict[str, Any]:
    pixels, cond = images.read(rows)
    hashes = [hashlib.sha256(one.contiguous().numpy().tobytes()).digest() for one in pixels]
    found = {"sha256": torch.tensor([list(each) for each in hashes], dtype=torch.uint8)}
    if cond.label is not None:
        found["label"] = cond.label
    short = chunk - len(rows)
    padded = torch.cat([pixels, pixels[-1:].expand(short, -1, -1, -1)])
    with full_float32():
        for observer in watching:
            for name, values in observer(padded, cond, rows).items():
                found[name] = values[: len(rows)]
    return found
