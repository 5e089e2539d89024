"""The two halves of a ViT auto-encoder and the names of their sizes.

Source: Hansen-Estruch et al. 2025, "Learnings from Scaling Visual Tokenizers for Reconstruction
and Generation", section 2 (`S-B/4x16`: a small encoder, a base decoder, tubelets of 4 frames and
16 x 16 pixels); the ViTok-v2 release adds depths and channels (`Ld4-Ld24/1x16x64`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from genvis.config import ConfigError, config

NAME = re.compile(r"([A-Z]+)(?:d(\d+))?-([A-Z]+)(?:d(\d+))?/(?:(\d+)x)?(\d+)(?:x(\d+))?")


@config
class Tower:
    """A transformer: the encoder or the decoder."""

    width: int
    depth: int
    heads: int

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads) < 1:
            raise ValueError("width, depth and heads must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"width must be divisible by heads, got {self.width} and {self.heads}")


@dataclass(frozen=True)
class Variant:
    encoder: Tower
    decoder: Tower
    tubelet: int  # frames of a token
    patch: int  # side of a token
    code: int | None  # channels of a token, where the name gives them


def variant(name: str, sizes: Mapping[str, Tower]) -> Variant:
    """What a name such as S-B/16, S-B/4x16 or Ld4-Ld24/1x16x64 says. ConfigError if nothing."""
    found = NAME.fullmatch(name)
    if not found:
        raise ConfigError(f"{name!r} is not of the form S-B/16, S-B/4x16 or Ld4-Ld24/1x16x64")
    encoder, encoder_depth, decoder, decoder_depth, tubelet, patch, code = found.groups()
    for size in (encoder, decoder):
        if size not in sizes:
            raise ConfigError(f"{name!r}: size {size!r} is not one of {', '.join(sizes)}")
    return Variant(
        encoder=_deep(sizes[encoder], encoder_depth),
        decoder=_deep(sizes[decoder], decoder_depth),
        tubelet=int(tubelet or 1),
        patch=int(patch),
        code=int(code) if code else None,
    )


def _deep(tower: Tower, depth: str | None) -> Tower:
    return replace(tower, depth=int(depth)) if depth else tower
