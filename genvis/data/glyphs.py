"""`glyphs`: letters and digits in the fonts that matplotlib ships, 62 classes, as a function of
(seed, split, index). Pixels depend a little on the version of FreeType.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from string import ascii_letters, digits

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from genvis.config import config
from genvis.data.drawn import Drawn
from genvis.random import uniforms
from genvis.types import Batch, Cond

GLYPHS = ascii_letters[26:] + ascii_letters[:26] + digits  # A-Z, a-z, 0-9
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
    "cmr10", "cmb10", "cmss10", "cmtt10",
)  # fmt: skip
LUMA = np.array([0.299, 0.587, 0.114])
FINE = 4  # sub-samples a side of a pixel
MIDDLE = 0.245  # of the em: half-way between the top of a capital and the foot of a p


@config
class GlyphsConfig:
    size: int = 32
    count: int = 20_000  # training examples
    held_out: int = 2_000
    seed: int = 0

    def build(self, split: str) -> "Glyphs":
        return Glyphs(self, split)


class Glyphs:
    def __init__(self, config: GlyphsConfig, split: str) -> None:
        if split not in ("train", "val"):
            raise ValueError(f"split must be train or val, got {split!r}")
        self.config, self.split = config, split
        self.images = Drawn(
            config.count if split == "train" else config.held_out, config.size, self._draw
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        labels = [int(next(self._numbers(i)) * len(GLYPHS)) for i in indices]
        return Batch(self.images[indices], Cond(label=torch.tensor(labels)))

    def _numbers(self, index: int) -> Iterator[float]:
        return uniforms(4, self.config.seed, int(self.split == "val"), index)

    def _draw(self, index: int) -> NDArray[np.uint8]:
        u, side = self._numbers(index), self.config.size * FINE
        glyph = GLYPHS[int(next(u) * len(GLYPHS))]
        font = FONTS[int(next(u) * len(FONTS))]
        em = (0.6 + 0.3 * next(u)) * side
        dx, dy = ((0.16 * next(u) - 0.08) * side for _ in range(2))
        angle = 16 * next(u) - 8  # degrees
        ink, paper = _two_colors(u)

        stencil = Image.new("L", (side, side))
        foot = (side / 2 + dx, side / 2 + dy + MIDDLE * em)
        ImageDraw.Draw(stencil).text(foot, glyph, 255, _font(font, round(em)), anchor="ms")
        turned = stencil.rotate(angle, Image.Resampling.BICUBIC)
        small = turned.resize((self.config.size,) * 2, Image.Resampling.BOX)
        alpha = np.asarray(small, np.float64)[:, :, None] / 255
        return np.floor(paper * (1 - alpha) + ink * alpha + 0.5).astype(np.uint8)


def _two_colors(u: Iterator[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two of different enough luminance to be read."""
    while True:
        ink, paper = (np.array([int(next(u) * 256) for _ in range(3)], float) for _ in range(2))
        if abs(LUMA @ (ink - paper)) >= 80:
            return ink, paper


@lru_cache(maxsize=512)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf", f"{name}.ttf"), size)
