"""From a stored picture to an image of a fixed size: decoding, crop, flip; the only place for it.

Sources: Dhariwal and Nichol 2021, "Diffusion Models Beat GANs", the crops of the released training
code, which ImageNet FIDs assume; Karras et al. 2022 ("center-crop"); Tian et al. 2024 (VAR).
Letters: S the wanted side.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from genvis.config import config
from genvis.random import Keys

Where = tuple[float, float, float]  # uniforms for scale, top and left; None: the centre
DEEP = ("I", "F")  # the first letters of modes beyond 8 bits, which a conversion would clip


@config
class View:
    """size: the side of what training sees. adm, edm: centre crops. adm_random and var crop at
    random when training and in the centre otherwise. flip: mirror half of the training images.
    """

    size: int
    crop: Literal["adm", "edm", "adm_random", "var"] = "adm"
    flip: bool = False  # not where left and right mean something: text, digits, "to the left of"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")

    @property
    def random(self) -> bool:
        return self.crop in ("adm_random", "var")

    def __call__(self, picture: Image.Image, where: Where | None = None) -> Tensor:
        """(3, S, S) uint8; `where` is for random crops, None for the centre."""
        square = np.array(CROPS[self.crop](picture, self.size, where))
        return torch.from_numpy(square).permute(2, 0, 1)


def rgb(picture: Image.Image) -> Image.Image:
    """An opened picture upright, as RGB; raises `UNREADABLE`."""
    check_depth(picture)
    return flat(ImageOps.exif_transpose(picture))


def check_depth(picture: Image.Image) -> None:
    """ValueError for more than 8 bits a channel; looks at the header alone."""
    if picture.mode.startswith(DEEP):
        raise ValueError(f"more than 8 bits a channel (mode {picture.mode}): convert it first")


def flat(picture: Image.Image) -> Image.Image:
    """As RGB, transparent parts on white; grey becomes three equal channels."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        paper = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(paper, layer).convert("RGB")
    return picture.convert("RGB")


def mirrored(keys: Keys) -> Tensor:
    """Which rows to flip (B,) bool: the same for an image and for its cached latent."""
    return keys.fold("flip").uniform() < 0.5


def adm(picture: Image.Image, size: int, where: Where | None = None) -> Image.Image:
    """ADM's centre crop: BOX halves while at least 2 S, then BICUBIC to a shorter side of S."""
    return _cut(_shrunk(picture, size), size, None)


def adm_random(picture: Image.Image, size: int, where: Where | None = None) -> Image.Image:
    """ADM's random crop: the shorter side to a random S .. S / 0.8, cut at a random place."""
    scale = 0.0 if where is None else where[0]
    side = size + int(scale * (math.ceil(size / 0.8) + 1 - size))
    return _cut(_shrunk(picture, side), size, where)


def edm(picture: Image.Image, size: int, where: Where | None = None) -> Image.Image:
    """EDM's centre crop: the largest centred square, resized with LANCZOS."""
    square = _cut(picture, min(picture.size), None)
    return square.resize((size, size), Image.Resampling.LANCZOS)


def var(picture: Image.Image, size: int, where: Where | None = None) -> Image.Image:
    """VAR's crop: the shorter side to round(1.125 S) with LANCZOS, cut at a random place."""
    return _cut(_scaled(picture, round(1.125 * size), Image.Resampling.LANCZOS), size, where)


CROPS: dict[str, Callable[[Image.Image, int, Where | None], Image.Image]] = {
    "adm": adm,
    "adm_random": adm_random,
    "edm": edm,
    "var": var,
}


def _shrunk(picture: Image.Image, side: int) -> Image.Image:
    while min(picture.size) >= 2 * side:
        half = picture.width // 2, picture.height // 2
        picture = picture.resize(half, Image.Resampling.BOX)
    return _scaled(picture, side, Image.Resampling.BICUBIC)


def _scaled(picture: Image.Image, side: int, how: Image.Resampling) -> Image.Image:
    scale = side / min(picture.size)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), how)


def _cut(picture: Image.Image, size: int, where: Where | None) -> Image.Image:
    rooms = picture.width - size, picture.height - size
    if where is None:
        x, y = (room // 2 for room in rooms)
    else:
        x, y = (int(u * (room + 1)) for u, room in zip(where[:0:-1], rooms, strict=True))
    return picture.crop((x, y, x + size, y + size))
