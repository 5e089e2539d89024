"""Images that are there already: a folder, a zip, tars, an npz of the ADM suite.

They are taken as they are stored, neither cropped nor turned upright.
Letters: B images, H W their size.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from genvis.config import config
from genvis.data.stores import EXTENSIONS, Store, beside, images_of, open_store, readable
from genvis.data.view import check_depth, flat
from genvis.evaluation.sources import Making
from genvis.images import read_npz
from genvis.samplers.folder import read_prompts
from genvis.types import Cond


@config
class Stored:
    """Image files of a folder and the folders in it, of a zip or of tars, by name; `x.txt` beside
    `x.png` is its prompt.

    ValueError if there is none, or if their sizes differ.
    """

    path: str

    def open(self, making: Making, chunk: int) -> "Files":
        return Files(self.path, open_store(self.path))


class Files:
    """The images of a store, in the order of their names."""

    seed = None

    def __init__(self, source: str, store: Store) -> None:
        self.source, self.store = source, store
        self.names = images_of(store.names)
        if not self.names:
            raise ValueError(f"{source}: holds no images ({', '.join(sorted(EXTENSIONS))})")
        self.prompts = beside(store, self.names, ".txt")
        if self.prompts and len(self.prompts) < len(self.names):
            lone = next(name for name in self.names if name not in self.prompts)
            raise ValueError(f"{source}: {lone} has no prompt, but others have")
        first = self._read(self.names[0], _size)
        for name in self.names:
            if (size := self._read(name, _size)) != first:
                raise ValueError(
                    f"{source}: images must have one size: {name} has {size}, "
                    f"{self.names[0]} has {first}"
                )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def said(self) -> tuple[str, ...] | None:
        return tuple(self._read(path, _text) for path in self.prompts.values()) or None

    @cached_property
    def identity(self) -> dict[str, Any]:
        stamps = [(name, self.store.stamp(name)) for name in (*self.names, *self.prompts.values())]
        whole = hashlib.sha256(repr(stamps).encode()).hexdigest()
        return {"images": str(Path(self.source).resolve()), "files": whole}

    def read(self, rows: range) -> tuple[Tensor, Cond]:
        names = self.names[rows.start : rows.stop]
        pixels = torch.from_numpy(np.stack([self._read(name, _pixels) for name in names]))
        texts = tuple(self._read(self.prompts[name], _text) for name in names if self.prompts)
        return rearrange(pixels, "b h w c -> b c h w"), Cond(prompts=texts or None)

    def _read(self, name: str, use: Callable[[IO[bytes]], Any]) -> Any:
        try:
            with readable(), self.store.open(name) as file:
                return use(file)
        except ValueError as error:
            raise ValueError(f"{self.source}: {name}: {error}") from error


def _size(file: IO[bytes]) -> str:
    """From the header alone."""
    picture = Image.open(file)
    check_depth(picture)
    return f"{picture.width} x {picture.height} pixels"


def _pixels(file: IO[bytes]) -> np.ndarray:
    return np.asarray(flat(Image.open(file)))


def _text(file: IO[bytes]) -> str:
    return file.read().decode("utf-8-sig").strip()


@config
class Arrays:
    """An npz of the ADM suite: `arr_0` uint8 (N, H, W, 3), and labels `arr_1` where there are; of a
    sample folder, with its prompts.
    """

    path: str

    def open(self, making: Making, chunk: int) -> "NpzImages":
        return NpzImages(Path(self.path))


@dataclass(frozen=True)
class NpzImages:
    """Read through a memory map, unless the file is compressed."""

    path: Path
    seed: None = field(default=None, init=False)

    def __len__(self) -> int:
        return len(self._arrays[0])

    @property
    def identity(self) -> dict[str, Any]:
        file = self.path.stat()
        return {"images": str(self.path.resolve()), "bytes": file.st_size, "time": file.st_mtime_ns}

    @property
    def said(self) -> tuple[str, ...] | None:
        return self._prompts

    def read(self, rows: range) -> tuple[Tensor, Cond]:
        pixels, labels = self._arrays
        chosen = torch.from_numpy(np.array(pixels[rows.start : rows.stop]))
        label = None if labels is None else torch.from_numpy(labels[rows.start : rows.stop])
        prompts = self._prompts and self._prompts[rows.start : rows.stop]
        return rearrange(chosen, "b h w c -> b c h w"), Cond(label=label, prompts=prompts)

    def __post_init__(self) -> None:
        if not len(self):
            raise ValueError(f"{self.path}: holds no images")

    @cached_property
    def _prompts(self) -> tuple[str, ...] | None:
        return read_prompts(self.path.parent) if self.path.name == "samples.npz" else None

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        return read_npz(self.path, mapped=True)
