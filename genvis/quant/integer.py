"""Integers of 2 to 8 bits.

    code = clamp(round_half_even(x / s) + z, qmin, qmax),  x_hat = (code - z) * s

    rule         qmin         qmax         s                             z
    sym_full     -2^(b-1)     2^(b-1) - 1  amax / qmax                   0
    sym_narrow   -qmax        2^(b-1) - 1  amax / qmax                   0
    sym_half     -2^(b-1)     2^(b-1) - 1  amax / (qmax + 1/2)           0
    sym_noclip   -2^(b-1)     2^(b-1) - 1  max(low / qmin, high / qmax)  0
    asym         0            2^b - 1      (high - low) / qmax           clamp(round(-low / s))

As in: MixDQ, Q-Diffusion, PTQ4DiT; bitsandbytes, SmoothQuant; torchao's SYMMETRIC; torchao's
SYMMETRIC_NO_CLIPPING_ERR; all of them for activations. With its scale sym_full never reaches its
lowest code on what it was fitted to, and so agrees there with sym_narrow.

Source: Jacob et al. 2018, "Quantization and training of neural networks", 2.1.
Letters: b bits, s scale, z zero point, [low, high] the range of a block, amax the larger of the
two in magnitude.
"""

from typing import Literal

import torch
from torch import Tensor

from genvis.config import config
from genvis.quant.blocks import Group
from genvis.quant.format import Format, Params
from genvis.quant.powers import ScaleKind, restored, scale_bytes, stored


@config
class Integer(Format):
    bits: int  # 2..8
    # neighbours in a row that share a scale; null: the whole row (an output channel, a token)
    group: Group = None
    rule: Literal["sym_full", "sym_narrow", "sym_half", "sym_noclip", "asym"] = "sym_full"
    scale: ScaleKind = "float32"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be in 2..8, got {self.bits}")

    @property
    def limits(self) -> tuple[int, int]:
        """qmin and qmax."""
        if self.rule == "asym":
            return 0, 2**self.bits - 1
        top = 2 ** (self.bits - 1) - 1
        return (-top if self.rule == "sym_narrow" else -top - 1), top

    @property
    def code_bits(self) -> int:
        return self.bits

    @property
    def first_code(self) -> int:
        return self.limits[0]

    @property
    def block_bytes(self) -> int:
        return scale_bytes(self.scale) + (1 if self.rule == "asym" else 0)

    def fit(self, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        """`scale` float32, or `exponent` uint8 if it is a power of two; asym: `zero` uint8."""
        qmin, qmax = self.limits
        if self.rule != "asym":
            return stored(self._symmetric(low, high), self.scale)
        params = stored((high - low) / qmax, self.scale)
        zero = (-low / restored(params)).round().clamp(qmin, qmax)
        return {**params, "zero": zero.to(torch.uint8)}

    def step(self, params: Params) -> Tensor:
        return restored(params)

    def in_steps(self, blocks: Tensor, step: Tensor) -> Tensor:
        # as torchao does, which matters where the extreme is a tie, as sym_half makes every one
        return blocks * (1 / step) if self.rule == "sym_half" else blocks / step

    def round(self, v: Tensor, params: Params) -> Tensor:
        return self._shifted(v, params).clamp(*self.limits)

    def value(self, codes: Tensor, params: Params) -> Tensor:
        codes = codes.float()
        return codes - params["zero"][..., None] if "zero" in params else codes

    def inside(self, v: Tensor, params: Params) -> Tensor:
        qmin, qmax = self.limits
        shifted = self._shifted(v, params)
        return (qmin <= shifted) & (shifted <= qmax)

    def _symmetric(self, low: Tensor, high: Tensor) -> Tensor:
        qmin, qmax = self.limits
        if self.rule == "sym_noclip":
            return torch.maximum(low / qmin, high / qmax)
        return torch.maximum(-low, high) / (qmax + 0.5 if self.rule == "sym_half" else qmax)

    def _shifted(self, v: Tensor, params: Params) -> Tensor:
        rounded = v.round()  # torch rounds half to even
        return rounded + params["zero"][..., None] if "zero" in params else rounded
