"""Microscaling: blocks of 32 small floating-point numbers that share a power of two.

    rule    exponent of the scale
    floor   floor(log2 amax) - emax
    ceil    ceil(log2 amax) - emax
    rceil   ceil(log2(amax / max))
    even    floor(log2 amax) - emax, with amax first rounded half up to the element's mantissa

amax is the largest magnitude in the block, max the largest of the element and emax its exponent.
Under floor what lies between max and 2^(emax + 1) is clipped; under rceil nothing is.

Source: Open Compute Project 2023, "Microscaling Formats (MX) v1.0", 6.3 (floor); the others are
those of torchao's MX formats.
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from torch import Tensor

from genvis.config import config
from genvis.quant import ELEMENTS
from genvis.quant.floating import Floating
from genvis.quant.format import Params
from genvis.quant.minifloat import Minifloat
from genvis.quant.powers import TINY, ceil_log2, floor_log2, from_byte, to_byte


@config
class MX(Floating):
    element: Annotated[Minifloat, ELEMENTS]
    rule: Literal["floor", "ceil", "rceil", "even"] = "floor"
    group: int = 32

    def __post_init__(self) -> None:
        if self.group < 1:
            raise ValueError(f"group must be at least 1, got {self.group}")

    @property
    def block_bytes(self) -> int:
        return 1

    def fit(self, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        """`exponent`: E8M0 codes, uint8."""
        amax = torch.maximum(-low, high).clamp_min(TINY)
        return {"exponent": to_byte(EXPONENTS[self.rule](amax, self.element))}

    def step(self, params: Params) -> Tensor:
        return from_byte(params["exponent"])


def _emax(element: Minifloat) -> int:
    return math.frexp(element.max)[1] - 1


def _floor(amax: Tensor, element: Minifloat) -> Tensor:
    return floor_log2(amax) - _emax(element)


def _ceil(amax: Tensor, element: Minifloat) -> Tensor:
    return ceil_log2(amax) - _emax(element)


def _rceil(amax: Tensor, element: Minifloat) -> Tensor:
    return ceil_log2(amax / element.max)


def _even(amax: Tensor, element: Minifloat) -> Tensor:
    carry = torch.frexp(amax).mantissa >= 1 - 2.0 ** -(element.mantissa + 2)
    return _floor(amax, element) + carry.to(torch.int32)


EXPONENTS: dict[str, Callable[[Tensor, Minifloat], Tensor]] = {
    "floor": _floor,
    "ceil": _ceil,
    "rceil": _rceil,
    "even": _even,
}
