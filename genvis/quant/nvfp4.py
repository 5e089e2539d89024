"""NVFP4: blocks of 16 E2M1 numbers with an E4M3 scale, over one float32 scale of the tensor.

    t = max |x| / (448 * 6),  s = E4M3(clamp(amax / 6 / t, 2^-6, 448)),  x_hat = E2M1(x / s / t) s t

Source: NVIDIA 2025, "Pretraining large language models with NVFP4"; the clamp as in torchao.
Letters: t scale of the tensor (1 without `tensor_scale`), s and amax scale and largest magnitude of
a block.
"""

import torch
from torch import Tensor

from genvis.config import config
from genvis.quant.floating import Floating
from genvis.quant.format import Params
from genvis.quant.minifloat import E2M1, E4M3

SMALLEST = 2.0**-6  # the first E4M3 number with a full mantissa


@config
class NVFP4(Floating):
    group: int = 16
    tensor_scale: bool = True

    element = E2M1  # no field: the format fixes it

    def __post_init__(self) -> None:
        if self.group < 1:
            raise ValueError(f"group must be at least 1, got {self.group}")

    @property
    def block_bytes(self) -> int:
        return 1

    @property
    def tensor_bytes(self) -> int:
        return 4 if self.tensor_scale else 0

    @property
    def spans_rows(self) -> bool:
        return self.tensor_scale

    def fit(self, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        """`scale`: E4M3 codes (R, K) uint8; `tensor_scale` (1, 1) float32 if there is one."""
        amax = torch.maximum(-low, high)
        if not self.tensor_scale:
            return {"scale": self._code(amax / E2M1.max)}
        # at least so large that every block scale is a normal number
        t = (amax.max() / (E4M3.max * E2M1.max)).clamp_min(2.0**-120).reshape(1, 1)
        return {"scale": self._code(amax / E2M1.max / t), "tensor_scale": t}

    def step(self, params: Params) -> Tensor:
        scale = E4M3.value(params["scale"])
        return scale * params["tensor_scale"] if self.tensor_scale else scale

    def _code(self, scale: Tensor) -> Tensor:
        return E4M3.round(scale.clamp(SMALLEST, E4M3.max)).to(torch.uint8)
