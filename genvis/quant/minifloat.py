"""Floating-point numbers of at most 8 bits: sign, exponent, mantissa.

    exponent field e > 0:  (1 + m / 2^M) 2^(e - bias)      e = 0:  m / 2^M 2^(1 - bias)

with bias = 2^(E-1) - 1, at least 1. Non-negative values rise with their codes e 2^M + m, so to
round is to find the nearest place on that grid, a tie going to the even code; what is larger than
the last finite value becomes that value.

Sources: Micikevicius et al. 2022, "FP8 formats for deep learning" (E4M3: the last code is NaN;
E5M2: the last exponent holds infinity and NaN, as in IEEE 754); Open Compute Project 2023,
"Microscaling Formats (MX) v1.0", 5.3 (E3M2, E2M3, E2M1: every code is a number).
Letters: E exponent bits, M mantissa bits.
"""

from typing import Literal

import torch
from torch import Tensor

from genvis.config import config
from genvis.quant.powers import from_byte


@config
class Minifloat:
    exponent: int
    mantissa: int
    # codes that are no numbers: none, the last one (NaN), those of the last exponent (inf and NaN)
    specials: Literal["none", "nan", "ieee"] = "none"

    def __post_init__(self) -> None:
        if self.exponent < 1 or self.mantissa < 0 or self.bits > 8:
            raise ValueError(
                "exponent must be at least 1, mantissa at least 0 and both with the sign at most "
                f"8 bits, got {self.exponent} and {self.mantissa}"
            )
        if self.count < 2:
            raise ValueError(
                f"specials {self.specials!r} leave no number but 0 in {self.bits} bits"
            )

    def __str__(self) -> str:
        return f"e{self.exponent}m{self.mantissa}"

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.mantissa

    @property
    def bias(self) -> int:
        return max(1, 2 ** (self.exponent - 1) - 1)

    @property
    def count(self) -> int:
        """How many finite values >= 0 there are: those of codes 0 to count - 1."""
        reserved = {"none": 0, "nan": 1, "ieee": 2**self.mantissa}[self.specials]
        return 2 ** (self.exponent + self.mantissa) - reserved

    @property
    def max(self) -> float:
        """The largest finite value."""
        e, m = divmod(self.count - 1, 2**self.mantissa)
        return ((e > 0) + m / 2**self.mantissa) * 2.0 ** (max(e, 1) - self.bias)

    def grid(self, device: torch.device | str = "cpu") -> Tensor:
        """The finite values >= 0, rising, float32: code i is worth grid[i]."""
        return self.value(torch.arange(self.count, device=device))

    def value(self, codes: Tensor) -> Tensor:
        """float32 values of codes; the sign is the highest bit."""
        magnitude = codes.to(torch.int32) % 2 ** (self.bits - 1)
        e, m = magnitude >> self.mantissa, magnitude % 2**self.mantissa
        finite = ((e > 0) + m / 2**self.mantissa) * from_byte(e.clamp_min(1) - self.bias + 127)
        infinite = (m == 0) & (self.specials == "ieee")
        special = torch.where(infinite, torch.inf, torch.nan)
        x = torch.where(magnitude < self.count, finite, special)
        return torch.where(codes < 2 ** (self.bits - 1), x, -x)

    def round(self, v: Tensor) -> Tensor:
        """Codes, int64, of the nearest values."""
        grid = self.grid(v.device)
        between = (grid[1:] + grid[:-1]) / 2  # exact
        magnitude = v.abs().contiguous()
        low = torch.bucketize(magnitude, between)  # where a tie is rounded down
        high = torch.bucketize(magnitude, between, right=True)  # and up
        code = torch.where(low % 2 == 0, low, high)
        return code + (v < 0) * 2 ** (self.bits - 1)


E4M3 = Minifloat(exponent=4, mantissa=3, specials="nan")  # up to 448
E5M2 = Minifloat(exponent=5, mantissa=2, specials="ieee")  # up to 57344
E3M2 = Minifloat(exponent=3, mantissa=2)  # up to 28
E2M3 = Minifloat(exponent=2, mantissa=3)  # up to 7.5
E2M1 = Minifloat(exponent=2, mantissa=1)  # up to 6
E3M0 = Minifloat(exponent=3, mantissa=0)  # 0 and the powers of two from 1/4 to 16
