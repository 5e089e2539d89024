"""Images at the border to files: uint8, PNG, grids."""

import io
import zlib
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipInfo

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from genvis.checkpoint import atomic_write

# what numpy raises at a file that is cut, changed, a lone .npy, or holds other arrays
DAMAGED = (
    OSError,
    EOFError,
    KeyError,
    ValueError,
    RuntimeError,
    TypeError,
    AttributeError,
    BadZipFile,
    zlib.error,
)


def to_uint8(images: Tensor) -> Tensor:
    """(N, 3, H, W) in [-1, 1] to 0..255, rounding half to even: the only conversion in genvis.

    ValueError for NaN or infinity, which would come out as black.
    """
    if not images.isfinite().all():
        raise ValueError("images hold NaN or infinity: the model that made them is broken")
    return (127.5 * (images + 1)).clamp(0, 255).round().to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def png(image: Tensor) -> bytes:
    """One uint8 image (3, H, W) as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def grid(images: Tensor, columns: int, scale: int = 1) -> Tensor:
    """One uint8 picture (3, H', W') of images (N, 3, H, W) in [-1, 1], each pixel enlarged `scale`
    times.
    """
    tiles = to_uint8(images).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return make_grid(tiles, nrow=columns, padding=2, pad_value=255)


def save_grid(path: str | Path, images: Tensor, columns: int) -> None:
    """A PNG of the grid; small images are enlarged to about 64 pixels a side so that a person can
    see them.
    """
    atomic_write(path, png(grid(images, columns, scale=max(1, 64 // images.shape[-1]))))


def save_npz(path: str | Path, images: Tensor, labels: Tensor | None) -> None:
    """The ADM sample format: `arr_0` uint8 (N, H, W, 3) and, if there are any, `arr_1` int64
    labels, from images (N, 3, H, W) in [-1, 1] or in uint8.
    """
    stored = images if images.dtype == torch.uint8 else to_uint8(images)
    arrays: dict[str, Any] = {"arr_0": stored.permute(0, 2, 3, 1).numpy()}
    if labels is not None:
        arrays["arr_1"] = labels.numpy()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    atomic_write(path, buffer.getvalue())


def load_npz(path: str | Path) -> tuple[Tensor, Tensor]:
    """(images (N, 3, H, W) in [-1, 1], labels (N,)) from an ADM sample file.

    ValueError names a file that is missing, damaged or not of this form.
    """
    images, labels = load_images(path)
    if labels is None:
        raise ValueError(f"{path}: without arr_0 and arr_1: the labels are missing")
    return images, labels


def load_images(path: str | Path) -> tuple[Tensor, Tensor | None]:
    """As `load_npz`, also of a file without labels."""
    images, labels = read_npz(path)
    decoded = from_uint8(torch.from_numpy(images).permute(0, 3, 1, 2))
    return decoded, None if labels is None else torch.from_numpy(labels)


def read_npz(path: str | Path, mapped: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """(images (N, H, W, 3) uint8, labels (N,) int64 or None) from an ADM file; see `load_npz`.

    mapped: images of a file that is not compressed stay on the disk until they are indexed, and
    damage inside them is not noticed.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such sample file")
    try:
        with np.load(path, allow_pickle=False) as data:
            entry, labels = data.zip.getinfo("arr_0.npy"), data.get("arr_1")
            alone = mapped and entry.compress_type == ZIP_STORED
            images = _mapped(Path(path), entry) if alone else data["arr_0"]
    except DAMAGED as e:
        raise ValueError(f"{path}: truncated, or without arr_0 and arr_1: {e}") from e
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        form = f"{images.shape} {images.dtype}"
        raise ValueError(f"{path}: arr_0 must be (N, H, W, 3) uint8, got {form}")
    if labels is None:
        return images, None
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        form = f"{labels.shape} {labels.dtype}"
        raise ValueError(f"{path}: arr_1 must be {len(images)} integer labels, got {form}")
    return images, labels.astype(np.int64)


def _mapped(path: Path, entry: ZipInfo) -> np.ndarray:
    """The array of an entry that is stored as it is, without reading it."""
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)  # lengths of its name and extra field
        name, extra = np.frombuffer(file.read(4), "<u2")
        file.seek(int(name) + int(extra), io.SEEK_CUR)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        shape, columns, dtype = (
            read if version == (1, 0) else np.lib.format.read_array_header_2_0
        )(file)
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if columns else "C")
