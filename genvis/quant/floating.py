"""Scaled floating-point numbers: FP8, FP6, FP4 and their relatives.

    x_hat = nearest(x / s) * s,  s = max |x| / largest value of the element

Sources: Micikevicius et al. 2022, "FP8 formats for deep learning"; Wu et al. 2023,
"ZeroQuant-FP", for scales rounded up to powers of two.
"""

from typing import Annotated

import torch
from torch import Tensor

from genvis.config import config
from genvis.quant import ELEMENTS
from genvis.quant.blocks import Group
from genvis.quant.format import Format, Params
from genvis.quant.minifloat import Minifloat
from genvis.quant.powers import ScaleKind, restored, scale_bytes, stored


class Floating(Format):
    """Codes that are minifloats; a format of this family adds how its blocks are scaled."""

    element: Minifloat

    @property
    def code_bits(self) -> int:
        return self.element.bits

    def round(self, v: Tensor, params: Params) -> Tensor:
        return self.element.round(v)

    def value(self, codes: Tensor, params: Params) -> Tensor:
        return self.element.value(codes)

    def inside(self, v: Tensor, params: Params) -> Tensor:
        return v.abs() <= self.element.max


@config
class Float(Floating):
    element: Annotated[Minifloat, ELEMENTS]
    # neighbours in a row that share a scale; null: the whole row (an output channel, a token)
    group: Group = None
    scale: ScaleKind = "float32"

    @property
    def block_bytes(self) -> int:
        return scale_bytes(self.scale)

    def fit(self, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        """`scale` float32, or `exponent` uint8 if it is a power of two."""
        return stored(torch.maximum(-low, high) / self.element.max, self.scale)

    def step(self, params: Params) -> Tensor:
        return restored(params)
