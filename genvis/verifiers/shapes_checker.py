"""How much of what its prompt asks for an image of `shapes` shows, by the programmatic checker.

A search climbs `soft`, which has no steps; report `strict`, and keep in mind that it is the same
detector: what a search by `soft` gains in `strict` may be the detector's blind spots.
Letters: B images.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor

from genvis.config import config
from genvis.data.checker import detect
from genvis.data.specs import parse
from genvis.images import to_uint8
from genvis.types import Cond
from genvis.verifiers.scoring import Need, PerImage

Form = Literal["soft", "strict", "lenient"]


@dataclass(frozen=True)
class ShapesChecker(PerImage):
    """form: a degree in [0, 1], or 0 and 1: exactly what is asked for, or at least that."""

    form: Form
    needs: ClassVar[tuple[Need, ...]] = ("prompts",)

    @property
    def name(self) -> str:
        return f"shapes-checker-{self.form}"

    def check(self, cond: Cond) -> None:
        for prompt in cond.prompts or ():
            parse(prompt)

    def score(self, images: Tensor, cond: Cond) -> Tensor:
        pixels = rearrange(to_uint8(images), "b c h w -> b h w c").numpy()
        specs = map(parse, cond.prompts or ())
        found = [getattr(detect(x), self.form)(spec) for x, spec in zip(pixels, specs, strict=True)]
        return torch.tensor(found, dtype=torch.float32)


@config
class ShapesCheckerConfig:
    form: Form = "soft"

    def build(self) -> ShapesChecker:
        return ShapesChecker(self.form)
