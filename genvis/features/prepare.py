"""Images as networks of images and words take them: brought to a square, and normalised.

In float, with gradients, for what is searched with; by Pillow in 8 bits, as published pipelines do
it, for numbers to compare.
Letters: B images, S side of the network's input.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
STD = (0.26862954, 0.26130258, 0.27577711)

# crop: the short side to S, then the middle; pad: the long side to S, then black around it; square:
# both sides to S, whatever the shape
Fit = Literal["crop", "pad", "square"]


def prepare(
    images: Tensor,
    size: int,
    fit: Fit = "crop",
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] to a network's input (B, 3, S, S), with gradients.

    Bicubic and antialiased, as published pipelines do it in 8 bits, here without rounding.
    """
    height, width = images.shape[-2:]
    to = resized(height, width, size, fit)
    x = F.interpolate(images, to, mode="bicubic", antialias=True).clamp(-1, 1)
    x = (_framed if fit == "pad" else _middle)((x + 1) / 2, size)
    return (x - x.new_tensor(mean).view(-1, 1, 1)) / x.new_tensor(std).view(-1, 1, 1)


def resized(height: int, width: int, size: int, fit: Fit) -> tuple[int, int]:
    """The sides after resizing, before what is too much is cut off or what lacks is framed."""
    if fit == "square":
        return size, size
    if fit == "crop":
        short = min(height, width)
        return height * size // short, width * size // short
    long = max(height, width)
    return round(height * size / long), round(width * size / long)


def _middle(x: Tensor, size: int) -> Tensor:
    top, left = ((side - size) // 2 for side in x.shape[-2:])
    return x[..., top : top + size, left : left + size]


def _framed(x: Tensor, size: int) -> Tensor:
    short = [size - side for side in x.shape[-2:]]
    (top, left), (bottom, right) = ([s // 2 for s in short], [s - s // 2 for s in short])
    return F.pad(x, (left, right, top, bottom))


@dataclass(frozen=True)
class Prepare:
    """What a network wants: pixels (B, 3, H, W) uint8 to its input (B, 3, S, S) float32, through
    Pillow, so that the numbers do not move with any package; `floating` is for images in [-1, 1].
    """

    size: int
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    fit: Fit = "crop"

    def __call__(self, pixels: Tensor) -> Tensor:
        values = np.stack([self._one(image) for image in pixels.permute(0, 2, 3, 1).cpu().numpy()])
        x = torch.from_numpy(values).permute(0, 3, 1, 2).float() / 255
        x = (_framed if self.fit == "pad" else _middle)(x, self.size)
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (self.mean, self.std))
        return (x - mean) / std

    def floating(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1], without rounding, with gradients."""
        return prepare(images, self.size, self.fit, self.mean, self.std)

    def _one(self, pixels: np.ndarray) -> np.ndarray:
        height, width = resized(pixels.shape[0], pixels.shape[1], self.size, self.fit)
        picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(picture)
