"""Stored pictures as a dataset: what is bad is counted and named, never skipped in silence.

A reader lists its pictures and opens one by number; `Pictures` takes a split of them, looks at them
through a view, and answers for what is missing or damaged.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from genvis.console import note, progress
from genvis.data.view import View, Where, mirrored
from genvis.images import from_uint8
from genvis.random import Keys
from genvis.types import Batch, Cond

NAMED = 10  # of the bad ones, in a message


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture: its name, its label and captions where it has them, what is wrong with it."""

    name: str
    label: int | None = None
    captions: tuple[str, ...] | None = None
    problem: str | None = None


class Reader(Protocol):
    """Where pictures come from. problems: those of no single picture, such as an empty class."""

    @property
    def source(self) -> str: ...
    @property
    def entries(self) -> Sequence[Entry]: ...
    @property
    def problems(self) -> Sequence[str]: ...
    def open(self, index: int) -> Image.Image:
        """Picture `index` as RGB. ValueError if it cannot be read."""
        ...


class Pictures:
    """The pictures `rows` of a reader, seen through a view.

    allow: how many bad ones there may be. With 0, a damaged picture is an error when it is first
    read. With more, every picture is read once now; what is bad is left out and named.
    """

    def __init__(self, reader: Reader, rows: Sequence[int], view: View, allow: int = 0) -> None:
        self.reader, self.view = reader, view
        bad = {i: why for i in rows if (why := reader.entries[i].problem) is not None}
        if allow:
            bad |= self._damaged([i for i in rows if i not in bad])
        named = [f"{reader.entries[i].name}: {why}" for i, why in bad.items()]
        self.left_out = (*reader.problems, *named)
        self._answer(allow)
        self.rows = [i for i in rows if i not in bad]
        if not self.rows:
            raise ValueError(f"{reader.source}: holds no picture that can be used")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        """Centre crops with their first captions."""
        images = torch.stack([self._image(i) for i in indices])
        return self._batch(images, indices, [0.0] * len(indices))

    def augmented(self, indices: Sequence[int], keys: Keys) -> Batch:
        """As training sees them: random crops, flips and captions, as the keys have it."""
        wheres: list[Where | None] = [None] * len(indices)
        if self.view.random:
            wheres = [(u, v, w) for u, v, w in keys.fold("crop").uniform((3,)).tolist()]
        images = torch.stack([self._image(i, u) for i, u in zip(indices, wheres, strict=True)])
        if self.view.flip:
            images = torch.where(mirrored(keys)[:, None, None, None], images.flip(-1), images)
        return self._batch(images, indices, keys.fold("caption").uniform().tolist())

    def captions(self, indices: Sequence[int]) -> list[tuple[str, ...]] | None:
        """Every caption of each picture, at least one; None where pictures have none."""
        said = [self.reader.entries[self.rows[i]].captions for i in indices]
        return None if None in said else [captions or () for captions in said]

    def _image(self, index: int, where: Where | None = None) -> Tensor:
        row = self.rows[index]
        try:
            return self.view(self.reader.open(row), where)
        except ValueError as error:
            name = self.reader.entries[row].name
            raise ValueError(
                f"{self.reader.source}: {name}: {error}; remove it, or set data.allow to the "
                "number of bad pictures that may be left out"
            ) from error

    def _batch(self, images: Tensor, indices: Sequence[int], which: Sequence[float]) -> Batch:
        """which: for each picture, where in the list of its captions, in [0, 1)."""
        labels = [self.reader.entries[self.rows[i]].label for i in indices]
        label = None if None in labels else torch.tensor(labels, dtype=torch.int64)
        captions = self.captions(indices)
        prompts = captions and tuple(pick(said, u) for said, u in zip(captions, which, strict=True))
        return Batch(from_uint8(images), Cond(label=label, prompts=prompts or None))

    def _damaged(self, rows: Sequence[int]) -> dict[int, str]:
        """Read every one of these pictures; row -> what is wrong with it."""

        def check(row: int) -> str | None:
            try:
                self.reader.open(row)
            except ValueError as error:
                return str(error)
            return None

        with ThreadPoolExecutor() as pool:  # decoding lets go of the interpreter
            found = list(progress(pool.map(check, rows), f"check {self.reader.source}", len(rows)))
        return {row: why for row, why in zip(rows, found, strict=True) if why is not None}

    def _answer(self, allow: int) -> None:
        if not self.left_out:
            return
        more = f"; and {len(self.left_out) - NAMED} more" * (len(self.left_out) > NAMED)
        named = "; ".join(self.left_out[:NAMED]) + more
        if len(self.left_out) > allow:
            raise ValueError(
                f"{self.reader.source}: {len(self.left_out)} bad, more than the {allow} that "
                f"data.allow lets be left out: {named}"
            )
        note(f"{self.reader.source}: {len(self.left_out)} left out ({allow} allowed): {named}")


def pick(captions: Sequence[str], u: float) -> str:
    """The caption at a share u in [0, 1) of the list."""
    return captions[int(u * len(captions))]


def split_rows(count: int, split: str, every: int) -> range | list[int]:
    """The rows of a split of one list of pictures: each `every`-th, from the first, is for val."""
    if split not in ("train", "val"):
        raise ValueError(f"split must be train or val, got {split!r}")
    if every < 2:
        raise ValueError(f"held_out must be at least 2 (every which one is for val), got {every}")
    if split == "val":
        return range(0, count, every)
    return [i for i in range(count) if i % every]
