"""Symmetric integer weights: one scale per output channel, or per group of consecutive inputs.

    code = clamp(round_half_even(w / s), qmin, qmax),  w_hat = code * s,  s = max |w| / span

    rule         qmin         qmax         span           as in
    sym_full     -2^(b-1)     2^(b-1) - 1  qmax           MixDQ, Q-Diffusion, PTQ4DiT
    sym_narrow   -qmax        2^(b-1) - 1  qmax           bitsandbytes, SmoothQuant
    sym_half     -2^(b-1)     2^(b-1) - 1  qmax + 1/2     torchao, MappingType.SYMMETRIC

With this scale sym_full never reaches its lowest code, and so agrees with sym_narrow.

Source: Jacob et al. 2018, "Quantization and training of neural networks", 2.1, zero point 0.
Letters: O output channels, I inputs of one (of a convolution: channels, then kernel), b bits,
G inputs that share a scale, K = I / G scales of a channel.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from genvis.config import config
from genvis.quant.packing import pack, packed_bytes, unpack


@config
class Integer:
    bits: int  # 2..8
    # consecutive inputs that share a scale; None: the whole output channel
    group: int | None = None
    rule: Literal["sym_full", "sym_narrow", "sym_half"] = "sym_full"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be in 2..8, got {self.bits}")
        if self.group is not None and self.group < 1:
            raise ValueError(f"group must be at least 1, got {self.group}")

    @property
    def limits(self) -> tuple[int, int]:
        """qmin and qmax."""
        top = 2 ** (self.bits - 1) - 1
        return (-top if self.rule == "sym_narrow" else -top - 1), top

    @property
    def span(self) -> float:
        """What the largest magnitude is divided by to give the scale."""
        return self.limits[1] + (0.5 if self.rule == "sym_half" else 0)

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (O, ...) int8, shaped like the weight, and scale (O, K) float32, positive."""
        groups = self._grouped(weight.detach().float())  # (O, K, G)
        if not groups.isfinite().all():
            raise ValueError("weight must be finite, it has NaN or infinite entries")
        tiny = torch.finfo(torch.float32).tiny  # a group of zeros keeps a scale to divide by
        scale = (groups.abs().amax(-1) / self.span).clamp_min(tiny)
        codes = (groups / scale[..., None]).round().clamp(*self.limits)  # torch rounds half to even
        return codes.to(torch.int8).reshape(weight.shape), scale

    def dequantize(self, codes: Tensor, scale: Tensor) -> Tensor:
        """The weight (O, ...) float32 of codes (O, ...) and scale (O, K)."""
        return (self._grouped(codes.float()) * scale[..., None]).reshape(codes.shape)

    def fake(self, weight: Tensor) -> Tensor:
        """The weight (O, ...) as quantized, in its own dtype: the definition of this format."""
        return self.dequantize(*self.quantize(weight)).to(weight.dtype)

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """`codes`: the bit stream of code - qmin (uint8); `scale` (O, K) float32."""
        codes, scale = self.quantize(weight)
        return {"codes": pack(codes.to(torch.int16) - self.limits[0], self.bits), "scale": scale}

    def unpack(self, parts: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """The weight of `shape`, float32, bit for bit what `fake` gives a float32 weight."""
        codes = unpack(parts["codes"], self.bits, math.prod(shape)).to(torch.int16) + self.limits[0]
        return self.dequantize(codes.reshape(tuple(shape)), parts["scale"])

    def storage_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of codes and scales for a weight of `shape`."""
        scales = math.prod(shape) // self._size(shape)
        return packed_bytes(math.prod(shape), self.bits) + 4 * scales

    def _size(self, shape: Sequence[int]) -> int:
        """G: how many inputs share a scale."""
        if len(shape) < 2 or not math.prod(shape):
            raise ValueError(
                f"weight must be (outputs, inputs, ...), none of them 0, got {tuple(shape)}"
            )
        inputs = math.prod(shape[1:])
        if self.group is not None and inputs % self.group:
            raise ValueError(
                f"group must divide the inputs of a channel, got {self.group} for {inputs}"
            )
        return self.group or inputs

    def _grouped(self, x: Tensor) -> Tensor:
        size = self._size(x.shape)
        return rearrange(x.flatten(1), "o (k g) -> o k g", g=size)
