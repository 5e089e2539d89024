"""Powers of sqrt(2) for probabilities after a softmax, which are never negative.

    code = clamp(round(-2 log2(x / s)), 0, 2^b - 1),  x_hat = s * 2^(-code / 2)

and 0 where the code would not fit. s is the largest number of the block.

Source: Li et al. 2023, "RepQ-ViT", the log-sqrt2 quantizer; zero as in its code.
Letters: b bits, s scale.
"""

import torch
from torch import Tensor

from genvis.config import config
from genvis.quant.blocks import Group
from genvis.quant.format import Format, Params
from genvis.quant.powers import TINY


@config
class LogSqrt2(Format):
    """For activations only. Zero is a code of its own, 2^b; a negative number becomes NaN."""

    bits: int  # 2..8
    # neighbours in a row that share a scale; null: the whole row (a token)
    group: Group = None

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be in 2..8, got {self.bits}")

    @property
    def code_bits(self) -> int:
        raise ValueError("log_sqrt2 is for activations that are never negative, not for weights")

    @property
    def block_bytes(self) -> int:
        return 4

    def fit(self, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        """`scale` float32."""
        return {"scale": high.clamp_min(TINY)}

    def step(self, params: Params) -> Tensor:
        return params["scale"]

    def round(self, v: Tensor, params: Params) -> Tensor:
        return self._exponent(v).clamp(0, 2**self.bits)

    def value(self, codes: Tensor, params: Params) -> Tensor:
        worth = torch.exp2(-codes.float() / 2)
        return torch.where(codes == 2**self.bits, 0, worth)

    def inside(self, v: Tensor, params: Params) -> Tensor:
        code = self._exponent(v)
        return (code >= 0) & (code < 2**self.bits)

    def _exponent(self, v: Tensor) -> Tensor:
        return (-2 * v.log2()).round()
