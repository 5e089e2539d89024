"""Images at the border to files: uint8, PNG, grids."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from genvis.checkpoint import atomic_write


def to_uint8(images: Tensor) -> Tensor:
    """(N, 3, H, W) in [-1, 1] to 0..255, rounding half to even: the only conversion in genvis."""
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


def save_npz(path: str | Path, images: Tensor, labels: Tensor) -> None:
    """The ADM sample format: `arr_0` uint8 (N, H, W, 3) and `arr_1` int64 labels."""
    buffer = io.BytesIO()
    np.savez(buffer, arr_0=to_uint8(images).permute(0, 2, 3, 1).numpy(), arr_1=labels.numpy())
    atomic_write(path, buffer.getvalue())


def load_npz(path: str | Path) -> tuple[Tensor, Tensor]:
    """(images (N, 3, H, W) in [-1, 1], labels (N,)) from an ADM sample file."""
    try:
        with np.load(path, allow_pickle=False) as data:
            images, labels = torch.from_numpy(data["arr_0"]), torch.from_numpy(data["arr_1"])
    except FileNotFoundError:
        raise ValueError(f"{path}: no such sample file") from None
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not a sample file with arr_0 and arr_1 ({error})") from error
    return from_uint8(images.permute(0, 3, 1, 2)), labels
