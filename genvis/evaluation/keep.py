"""What an evaluation leaves behind besides numbers: nothing, PNG files, or an npz.

All three look at chunks as observers do. Letters: N images, B of a chunk.
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from genvis.checkpoint import atomic_write, replacing
from genvis.evaluation.observe import Observer, load_part
from genvis.images import png
from genvis.types import Cond


@dataclass(frozen=True)
class Nothing:
    folder: Path

    @property
    def identity(self) -> dict[str, Any]:
        return {"keep": "none"}

    def __call__(self, pixels: Tensor, cond: Cond, rows: range) -> dict[str, Tensor]:
        return {}

    def finish(self, parts: tuple[Path, ...]) -> None: ...


@dataclass(frozen=True)
class PNGs:
    """`images/000123.png`, named by the image's number."""

    folder: Path

    @property
    def identity(self) -> dict[str, Any]:
        return {"keep": "png"}

    def __call__(self, pixels: Tensor, cond: Cond, rows: range) -> dict[str, Tensor]:
        for i, image in zip(rows, pixels, strict=False):  # pixels may be padded
            atomic_write(self.folder / "images" / f"{i:06d}.png", png(image))
        return {}

    def finish(self, parts: tuple[Path, ...]) -> None: ...


@dataclass(frozen=True)
class Npz:
    """`samples.npz` as the ADM suite reads it, put together from the parts, one at a time."""

    folder: Path

    @property
    def identity(self) -> dict[str, Any]:
        return {"keep": "npz"}

    def __call__(self, pixels: Tensor, cond: Cond, rows: range) -> dict[str, Tensor]:
        return {"pixels": pixels}

    def finish(self, parts: tuple[Path, ...]) -> None:
        path = self.folder / "samples.npz"
        if path.exists():
            return
        arrays = {"arr_0": "pixels"}
        if "label" in load_part(parts[0]):
            arrays["arr_1"] = "label"
        with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for array, name in arrays.items():
                _write(archive, array, name, parts)


class Keep(Observer, Protocol):
    def finish(self, parts: tuple[Path, ...]) -> None:
        """Once every part is there."""
        ...


KEEP: dict[str, Callable[[Path], Keep]] = {"none": Nothing, "png": PNGs, "npz": Npz}


def _write(archive: zipfile.ZipFile, array: str, name: str, parts: tuple[Path, ...]) -> None:
    """One array of the archive, of the rows under `name` in all parts."""
    first, last = _rows(parts[0], name), _rows(parts[-1], name)
    n = len(first) * (len(parts) - 1) + len(last)
    form = {"descr": first.dtype.str, "fortran_order": False, "shape": (n, *first.shape[1:])}
    with archive.open(f"{array}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, form)
        for path in parts:
            file.write(np.ascontiguousarray(_rows(path, name)).tobytes())


def _rows(path: Path, name: str) -> np.ndarray:
    rows = load_part(path)[name].numpy()
    return rows.transpose(0, 2, 3, 1) if name == "pixels" else rows
