"""The resizers of published Inception distances, each by name: they move FID more than most models.

Source: Parmar et al. 2022, "On Aliased Resizing", for `clean`; pytorch-fid, TensorFlow 1 and
torchmetrics for the others. All take 8-bit pixels and give unrounded floats.
Letters: B images, H W their size, h w the wanted size.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

Resizer = Callable[[Tensor, tuple[int, int]], Tensor]  # (B, 3, H, W) uint8 -> (B, 3, h, w) float32


def clean(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Pillow's antialiased bicubic on float channels, clipped to [0, 255] but not rounded.

    clean-fid's `clean` to the last bit. Pillow works on the CPU and on one channel at a time.
    """
    h, w = size
    planes = rearrange(pixels, "b c h w -> (b c) h w").cpu().numpy().astype(np.float32)
    resized = np.empty((len(planes), h, w), np.float32)
    for plane, out in zip(planes, resized, strict=True):
        out[:] = np.asarray(Image.fromarray(plane).resize((w, h), Image.Resampling.BICUBIC))
    values = torch.from_numpy(resized.clip(0, 255)).to(pixels.device)
    return rearrange(values, "(b c) h w -> b c h w", c=pixels.shape[1])


def legacy_pytorch(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """torch's bilinear with half-pixel centres and no antialiasing: pytorch-fid, and clean-fid's
    mode of this name.
    """
    values = F.interpolate(pixels.float(), size, mode="bilinear", align_corners=False)
    return values.clamp(0, 255)


def tf1_bilinear(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """TensorFlow 1: corner-anchored (source = target * in / out), no antialiasing. The ADM suite
    and torch-fidelity.
    """
    values = pixels.float()
    left, right, x = _neighbours(values.shape[3], size[1], values.device)
    top, bottom, y = _neighbours(values.shape[2], size[0], values.device)
    across = values[..., left] + (values[..., right] - values[..., left]) * x  # (B, 3, H, w)
    upper, lower = across[:, :, top], across[:, :, bottom]
    return upper + (lower - upper) * y[:, None]


def torchmetrics_antialias(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """torch's antialiased bilinear, the default of torchmetrics 1.9; nobody else has it."""
    return F.interpolate(pixels.float(), size, mode="bilinear", align_corners=False, antialias=True)


RESIZERS: dict[str, Resizer] = {
    "clean": clean,
    "legacy_pytorch": legacy_pytorch,
    "tf1_bilinear": tf1_bilinear,
    "torchmetrics_antialias": torchmetrics_antialias,
}


def resize(pixels: Tensor, mode: str, size: tuple[int, int] = (299, 299)) -> Tensor:
    """Pixels (B, 3, H, W) uint8 to (B, 3, h, w) float32 in [0, 255] by the resizer of that name.

    ValueError for another mode, shape or type, or a side of zero.
    """
    if mode not in RESIZERS:
        raise ValueError(f"resize must be one of {', '.join(RESIZERS)}, got {mode!r}")
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not all(pixels.shape[2:]):
        raise ValueError(f"pixels must be (B, 3, H, W), got {tuple(pixels.shape)}")
    if pixels.dtype != torch.uint8:
        raise ValueError(f"pixels must be uint8, got {pixels.dtype}")
    if min(size) < 1:
        raise ValueError(f"size must be at least (1, 1), got {size}")
    return RESIZERS[mode](pixels, size)


def _neighbours(given: int, wanted: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each target index the source indices below and above, and the way between, (wanted,)."""
    scale = torch.tensor(given, dtype=torch.float32) / wanted  # TensorFlow rounds the scale too
    source = torch.arange(wanted, dtype=torch.float32) * scale
    below = source.long().clamp(max=given - 1)  # rounding may reach the far edge
    above = (below + 1).clamp(max=given - 1)
    return below.to(device), above.to(device), (source - below).to(device)
