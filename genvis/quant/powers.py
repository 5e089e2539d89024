"""Scales that are powers of two: exact logarithms and the byte that stores one.

Source: Open Compute Project 2023, "Microscaling Formats (MX) v1.0", 5.4.1: E8M0 holds 2^(byte -
127); its last code is NaN and never made here.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

ScaleKind = Literal["float32", "power_of_two"]
TINY = torch.finfo(torch.float32).tiny  # 2^-126: what a block of zeros is divided by


def floor_log2(x: Tensor) -> Tensor:
    """The largest integer e with 2^e <= x, for x > 0."""
    return torch.frexp(x).exponent - 1  # x = m 2^e, m in [1/2, 1)


def ceil_log2(x: Tensor) -> Tensor:
    """The smallest integer e with x <= 2^e, for x > 0."""
    mantissa, exponent = torch.frexp(x)
    return exponent - (mantissa == 0.5).to(exponent.dtype)


def to_byte(exponent: Tensor) -> Tensor:
    """E8M0 code, uint8, of 2^exponent, kept in -127..127."""
    return (exponent.clamp(-127, 127) + 127).to(torch.uint8)


def from_byte(byte: Tensor) -> Tensor:
    """2^(byte - 127), float32."""
    bits = byte.to(torch.int32) << 23  # the exponent field; 2^-127 has no leading one
    return torch.where(byte == 0, 1 << 22, bits).view(torch.float32)


def stored(scale: Tensor, kind: ScaleKind) -> dict[str, Tensor]:
    """A scale > 0 as it is kept: as it is, or rounded up to a power of two."""
    scale = scale.clamp_min(TINY)
    if kind == "float32":
        return {"scale": scale}
    return {"exponent": to_byte(ceil_log2(scale))}


def restored(params: Mapping[str, Tensor]) -> Tensor:
    """The scale, float32, that `stored` kept."""
    return from_byte(params["exponent"]) if "exponent" in params else params["scale"]


def scale_bytes(kind: ScaleKind) -> int:
    return 4 if kind == "float32" else 1
