"""What a format is: numbers x become codes and come back as x_hat.

    v = x / step,  codes = round(v),  x_hat = value(codes) * step

A format says what its codes are worth (`round`, `value`) and how the step of a block follows from
the block's range (`fit`, `step`); the rest is here and the same for all. `fake` defines the
meaning: `pack` and `unpack` are the same through the bytes that a saved model holds.

Source of the gradients: Bengio et al. 2013, "Estimating or propagating gradients" (straight
through), to x; Esser et al. 2020, "Learned step size quantization", eq. 3, to the step.
Letters: as in `genvis.quant.blocks`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from genvis.quant.blocks import Group, count, ranges, split
from genvis.quant.packing import pack, packed_bytes, unpack

Params = Mapping[str, Tensor]  # what is stored beside the codes, each (R, K)


class Format(ABC):
    """How numbers x (R, ...) are represented, R rows of them."""

    group: Group

    @property
    @abstractmethod
    def code_bits(self) -> int:
        """Bits of a stored code."""

    @property
    @abstractmethod
    def block_bytes(self) -> int:
        """Bytes stored for each block, beside its codes."""

    @property
    def tensor_bytes(self) -> int:
        """Bytes stored once, beside codes and blocks."""
        return 0

    @property
    def first_code(self) -> int:
        """The lowest code, which is stored as 0."""
        return 0

    @property
    def spans_rows(self) -> bool:
        """Whether what one row becomes depends on the others."""
        return self.group == "tensor"

    @abstractmethod
    def fit(self, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        """Parameters for blocks of numbers in [low, high], (R, K) each, low <= 0 <= high."""

    @abstractmethod
    def step(self, params: Params) -> Tensor:
        """What a value of 1 is worth, (R, K) float32, positive."""

    def in_steps(self, blocks: Tensor, step: Tensor) -> Tensor:
        """v of blocks (R, K, G) and steps (R, K, 1)."""
        return blocks / step

    @abstractmethod
    def round(self, v: Tensor, params: Params) -> Tensor:
        """Codes, in any number type, of v = x / step (R, K, G)."""

    @abstractmethod
    def value(self, codes: Tensor, params: Params) -> Tensor:
        """What codes (R, K, G) are worth in steps, float32."""

    @abstractmethod
    def inside(self, v: Tensor, params: Params) -> Tensor:
        """Where v = x / step (R, K, G) is rounded rather than clipped, bool."""

    def encode(self, x: Tensor, params: Params | None = None) -> tuple[Tensor, Params]:
        """Codes, int16, shaped like x (R, ...), and the parameters: those given, or fitted to x."""
        blocks = split(x.detach().float(), self.group)
        params = self.fit(*ranges(blocks)) if params is None else params
        codes = self.round(self.in_steps(blocks, self.step(params)[..., None]), params)
        return codes.to(torch.int16).reshape(x.shape), params

    def decode(self, codes: Tensor, params: Params) -> Tensor:
        """x_hat, float32, shaped like the codes (R, ...)."""
        blocks = split(codes, self.group)
        return (self.value(blocks, params) * self.step(params)[..., None]).reshape(codes.shape)

    def fake(self, x: Tensor, params: Params | None = None) -> Tensor:
        """x (R, ...) as quantized, in its own dtype; NaN stays NaN.

        Gradients pass to x where it is not clipped, and to `step(params)` if that wants one.
        """
        blocks = split(x.float(), self.group)
        params = self.fit(*ranges(blocks.detach())) if params is None else params
        step = self.step(params)[..., None]
        with torch.no_grad():
            v = self.in_steps(blocks, step)
            x_hat = self.value(self.round(v, params), params) * step
            inside = self.inside(v, params)
        return _Straight.apply(blocks, step, x_hat, inside).reshape(x.shape).to(x.dtype)

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """What to store, by name: `codes`, their bit stream (uint8), and the parameters."""
        if not weight.isfinite().all():
            raise ValueError("weight must be finite, it has NaN or infinite entries")
        return self.parts(*self.encode(weight))

    def parts(self, codes: Tensor, params: Params) -> dict[str, Tensor]:
        """What to store of codes, of any shape and number type, and their parameters."""
        return {"codes": pack(codes - self.first_code, self.code_bits), **params}

    def unpack(self, parts: Params, shape: Sequence[int]) -> Tensor:
        """The weight of `shape`, float32, bit for bit what `fake` gives a float32 weight."""
        return self.decode(self.codes(parts, shape), parts)

    def codes(self, parts: Params, shape: Sequence[int]) -> Tensor:
        """The codes of a weight of `shape`, int16, as `encode` gave them."""
        stored = unpack(parts["codes"], self.code_bits, math.prod(shape)).to(torch.int16)
        return (stored + self.first_code).reshape(tuple(shape))

    def storage_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of what `pack` stores for a weight of `shape`."""
        codes = packed_bytes(math.prod(shape), self.code_bits)
        return codes + self.block_bytes * math.prod(count(shape, self.group)) + self.tensor_bytes


class _Straight(torch.autograd.Function):
    """x_hat, differentiated as step * (v + constant) inside and step * constant outside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, x_hat: Tensor, inside: Tensor) -> Tensor:
        learned = ctx.needs_input_grad[1]
        ctx.save_for_backward(inside, *((x, step, x_hat) if learned else ()))
        return torch.where(x.isnan(), x, x_hat)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        inside, *learned = ctx.saved_tensors
        (grad,) = grads
        if not learned:
            return grad * inside, None, None, None
        x, step, x_hat = learned
        to_step = (grad * (x_hat - x * inside) / step).sum_to_size(step.shape)
        return grad * inside, to_step, None, None
