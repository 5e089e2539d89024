"""A tokenizer on images larger than it can hold: tile by tile, with blended overlaps.

The tiles have one size (the last ones end at the border), so a transformer with positions for its
training size can decode any larger map. Half of each overlap blends two tiles; the quarters beside
a cut are thrown away. So a tokenizer that sees no further than a quarter of the overlap gives
exactly what it gives untiled; one that attends to whole images does not, and seams are only hidden.
Letters: B batch, c channels, h w latent size, f pixels a side of a latent cell.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor, nn

from genvis.config import config
from genvis.tokenizers import TOKENIZERS
from genvis.types import Moments, Tokenizer, TokenizerConfig


@config
class TiledConfig:
    tokenizer: Annotated[TokenizerConfig, TOKENIZERS]
    factor: int  # f
    tile: int = 32  # side in latent cells; smaller maps are left whole
    overlap: int = 8  # cells, divisible by 4

    def __post_init__(self) -> None:
        if self.factor < 1 or not 0 <= self.overlap <= self.tile // 2 or self.overlap % 4:
            raise ValueError(
                "factor must be at least 1 and overlap divisible by 4 and at most half a tile, got "
                f"{self.factor}, {self.overlap} and {self.tile}"
            )

    def build(self) -> "Tiled":
        inner = self.tokenizer.build()
        own = getattr(inner, "config", self.tokenizer)  # not the path that it was loaded from
        return Tiled(replace(self, tokenizer=own), inner)


class Tiled(nn.Module):
    """Around `tokenizer`, which the config describes."""

    def __init__(self, config: TiledConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer

    def encode(self, images: Tensor) -> Moments:
        """As the tokenizer's own; mean and std are blended. Sides must be divisible by f."""
        config = self.config
        return tiled_encode(self.tokenizer, images, config.factor, config.tile, config.overlap)

    def decode(self, z: Tensor) -> Tensor:
        """As the tokenizer's own, of latents (B, c, h, w)."""
        config = self.config
        return tiled(self.tokenizer.decode, z, config.tile, config.overlap, write=config.factor)


def tiled_encode(
    tokenizer: Tokenizer, images: Tensor, factor: int, tile: int, overlap: int
) -> Moments:
    """`tokenizer.encode` on tiles of images (B, 3, H, W), each `tile` latent cells a side."""
    if images.shape[-2] % factor or images.shape[-1] % factor:
        raise ValueError(f"images must have sides divisible by {factor}, got {tuple(images.shape)}")

    def encode(part: Tensor) -> Tensor:
        found = tokenizer.encode(part)
        return torch.stack([found.mean] if found.std is None else [found.mean, found.std])

    return Moments(*tiled(encode, images, tile, overlap, read=factor))


def tiled(
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    tile: int,
    overlap: int,
    read: int = 1,
    write: int = 1,
) -> Tensor:
    """f on overlapping tiles of x (..., H, W), blended into one result.

    tile and overlap count cells, of `read` input values and `write` output values a side.
    """
    height, width = (n // read for n in x.shape[-2:])  # in cells
    rows, columns = _starts(height, tile, overlap), _starts(width, tile, overlap)
    if len(rows) == len(columns) == 1:
        return f(x)
    high, wide = min(tile, height), min(tile, width)
    parts = torch.zeros(())
    total = torch.zeros(height * write, width * write, device=x.device)
    for row in rows:
        for column in columns:
            top, left = read * row, read * column
            part = f(x[..., top : top + read * high, left : left + read * wide])
            if part.shape[-2:] != (write * high, write * wide):
                raise ValueError(
                    f"factor does not fit: a tile of {high} x {wide} cells should become "
                    f"{write * high} x {write * wide}, got {tuple(part.shape)}"
                )
            if not parts.ndim:
                parts = part.new_zeros(*part.shape[:-2], *total.shape)
            weight = torch.outer(
                _ramp(high, overlap, row > rows[0], row < rows[-1], write),
                _ramp(wide, overlap, column > columns[0], column < columns[-1], write),
            ).to(part)
            top, left = write * row, write * column
            there = slice(top, top + write * high), slice(left, left + write * wide)
            parts[..., *there] += weight * part
            total[there] += weight
    return parts / total


def _starts(n: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin on an axis of n cells."""
    if n <= tile:
        return [0]
    return [*range(0, n - tile, tile - overlap), n - tile]


def _ramp(n: int, overlap: int, before: bool, after: bool, scale: int) -> Tensor:
    """Weights (n scale,) of a tile along an axis: 1, but rising and falling where it has
    neighbours, and 0 in the quarter of the overlap next to the cut.
    """
    if not overlap:
        return torch.ones(n * scale)
    place = (torch.arange(n * scale) + 0.5) / scale
    up = (place - overlap / 4) / (overlap / 2) if before else torch.ones(n * scale)
    down = (n - place - overlap / 4) / (overlap / 2) if after else torch.ones(n * scale)
    return torch.minimum(up, down).clamp(0, 1)
