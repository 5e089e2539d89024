"""Images that are there already: a folder, a zip, an npz of the ADM suite.

Letters: B images, H W their size.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from genvis.config import config
from genvis.evaluation.sources import Making
from genvis.images import DAMAGED
from genvis.types import Cond

Opened = Callable[[str], IO[bytes]]
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}


@config
class Folder:
    """Image files of a folder and the folders in it, by name; `x.txt` beside `x.png` is its prompt.

    ValueError if there is none, or if their sizes differ.
    """

    path: str

    def open(self, making: Making, chunk: int) -> "Files":
        root, stamps = Path(self.path), {}
        for file in sorted(root.rglob("*")):
            if file.is_file():
                known = file.stat()
                name = file.relative_to(root).as_posix()
                stamps[name] = f"{known.st_size} {known.st_mtime_ns}"
        return Files(self.path, stamps, lambda name: (root / name).open("rb"))


@config
class Archive:
    """The same, in a zip file."""

    path: str

    def open(self, making: Making, chunk: int) -> "Files":
        try:
            archive = zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{self.path}: not a readable zip file: {error}") from error
        stamps = {entry.filename: f"{entry.file_size} {entry.CRC}" for entry in archive.infolist()}
        return Files(self.path, stamps, archive.open)


class Files:
    """Image files by name, in order; stamps: name -> what changes when the file does."""

    def __init__(self, source: str, stamps: dict[str, str], opened: Opened) -> None:
        shown = {n: stamps[n] for n in sorted(stamps) if not PurePosixPath(n).name.startswith(".")}
        self.names = [name for name in shown if PurePosixPath(name).suffix.lower() in SUFFIXES]
        self.source, self._opened = source, opened
        if not self.names:
            raise ValueError(f"{source}: holds no images ({', '.join(sorted(SUFFIXES))})")
        self._stamp = hashlib.sha256(repr(shown).encode()).hexdigest()
        self._prompts = [name for name in map(_caption, self.names) if name in shown]
        if self._prompts and len(self._prompts) < len(self.names):
            lone = next(name for name in self.names if _caption(name) not in shown)
            raise ValueError(f"{source}: {lone} has no prompt, but others have")
        self.size = self._decode(self.names[0], _size)  # (W, H)
        for name in self.names:
            if (size := self._decode(name, _size)) != self.size:
                given, first = (f"{w} x {h} pixels" for w, h in (size, self.size))
                raise ValueError(
                    f"{source}: images must have one size: {name} has {given}, "
                    f"{self.names[0]} has {first}"
                )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def identity(self) -> dict[str, Any]:
        return {"images": str(Path(self.source).resolve()), "files": self._stamp}

    def read(self, rows: range) -> tuple[Tensor, Cond]:
        pixels = np.stack([self._decode(self.names[i], _rgb) for i in rows])
        texts = tuple(self._text(name) for name in self._prompts[rows.start : rows.stop])
        cond = Cond(prompts=texts or None)
        return rearrange(torch.from_numpy(pixels), "b h w c -> b c h w"), cond

    def _text(self, name: str) -> str:
        with self._opened(name) as file:
            return file.read().decode().strip()

    def _decode(self, name: str, use: Callable[[Image.Image], Any]) -> Any:
        try:
            with self._opened(name) as file, Image.open(file) as image:
                if image.mode[0] in "IF":
                    raise ValueError(f"mode {image.mode} has more than 8 bits a colour")
                return use(image)
        except (OSError, SyntaxError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{self.source}: {name}: truncated, or not an 8-bit image: {error}"
            ) from error


@config
class Arrays:
    """An npz of the ADM suite: `arr_0` uint8 (N, H, W, 3), and labels `arr_1` where there are."""

    path: str

    def open(self, making: Making, chunk: int) -> "NpzImages":
        return NpzImages(Path(self.path))


@dataclass(frozen=True)
class NpzImages:
    """Read through a memory map, unless the file is compressed."""

    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no such file")
        shape, dtype = self._pixels.shape, self._pixels.dtype
        if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or not shape[0]:
            raise ValueError(f"{self.path}: arr_0 must be (N, H, W, 3) uint8, got {shape} {dtype}")
        labels = self._labels
        if labels is not None and (labels.shape != shape[:1] or labels.dtype.kind not in "iu"):
            raise ValueError(f"{self.path}: arr_1 must be {shape[0]} integer labels")

    def __len__(self) -> int:
        return len(self._pixels)

    @property
    def identity(self) -> dict[str, Any]:
        file = self.path.stat()
        return {"images": str(self.path.resolve()), "bytes": file.st_size, "time": file.st_mtime_ns}

    def read(self, rows: range) -> tuple[Tensor, Cond]:
        pixels = torch.from_numpy(np.array(self._pixels[rows.start : rows.stop]))
        labels = self._labels
        chosen = None if labels is None else labels[rows.start : rows.stop].astype(np.int64)
        label = None if chosen is None else torch.from_numpy(chosen)
        return rearrange(pixels, "b h w c -> b c h w"), Cond(label=label)

    @cached_property
    def _pixels(self) -> np.ndarray:
        try:
            with zipfile.ZipFile(self.path) as archive:
                entry = archive.getinfo("arr_0.npy")
            if entry.compress_type == zipfile.ZIP_STORED:
                return _mapped(self.path, entry)
            with np.load(self.path, allow_pickle=False) as data:
                return data["arr_0"]
        except DAMAGED as error:
            raise ValueError(f"{self.path}: truncated, or without arr_0: {error}") from error

    @cached_property
    def _labels(self) -> np.ndarray | None:
        try:
            with np.load(self.path, allow_pickle=False) as data:
                return data.get("arr_1")
        except DAMAGED as error:
            raise ValueError(f"{self.path}: truncated: {error}") from error


def _mapped(path: Path, entry: zipfile.ZipInfo) -> np.ndarray:
    """The array of an entry that is stored as it is, without reading it."""
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)  # lengths of its name and extra field
        name, extra = np.frombuffer(file.read(4), "<u2")
        file.seek(int(name) + int(extra), io.SEEK_CUR)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
        return np.memmap(path, dtype, "r", file.tell(), shape)


def _size(image: Image.Image) -> tuple[int, int]:
    return image.size


def _rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def _caption(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(".txt"))
