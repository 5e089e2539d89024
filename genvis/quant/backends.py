"""Back-ends of this package: full precision, products of 8-bit integers, packed 4-bit weights.

Letters: M rows, I inputs, O outputs, s scales, z zero points, x and w inputs and weights.
"""

import copy
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from genvis.config import config
from genvis.kernels import int4_matmul
from genvis.kernels.int8_matmul import int8_matmul
from genvis.quant.integer import Integer
from genvis.quant.modules import PackedConv2d
from genvis.quant.products import KernelLayer, Product, Rounded


class Backend(Protocol):
    """Computes products by kernels of its own, from the codes that the plan's formats gave."""

    def lacks(self, product: Product) -> str | None:
        """What it would take instead of this product, in a few words; None if it takes this."""
        ...

    def runs(self, product: Product) -> str:
        """The numbers that are multiplied, such as "int8 x int8"."""
        ...

    def build(self, product: Product) -> nn.Module:
        """A layer that does it, from inputs that are not rounded yet."""
        ...


@config
class Fake:
    """Takes everything: the weight is unpacked once, for products in the net's own dtype."""

    def lacks(self, product: Product) -> str | None:
        return None

    def runs(self, product: Product) -> str:
        return str(product.dtype).removeprefix("torch.")

    def build(self, product: Product) -> nn.Module:
        packed, layer = product.weight, _plain(product)
        with torch.no_grad():
            layer.weight.copy_(packed.weight)
        layer.bias = copy.deepcopy(packed.bias)
        layer.requires_grad_(False).train(packed.training)
        act = copy.deepcopy(product.act)
        return layer if act is None else Rounded(act, layer, product.axis)


@config
class Int8:
    """Integer products, added up exactly: weights of up to 8 bits in one byte each with a scale per
    output channel, inputs of up to 8 bits with a range per token or one for all.

        y = s_x s_w (x_int w_int^T - z rowsum(w_int)) + b
    """

    def lacks(self, product: Product) -> str | None:
        weight = product.weight.format
        if reason := product.no_matrix():
            return reason
        if not isinstance(weight, Integer) or weight.rule == "asym":
            return "symmetric integer weights"
        if weight.group is not None:
            return "a weight scale per output channel"
        if product.act is None:
            return "quantized inputs"
        act = product.act.config.format
        if not isinstance(act, Integer):
            return "integer inputs"
        return None if act.group in (None, "tensor") else "an input range per token"

    def runs(self, product: Product) -> str:
        return "int8 x int8"

    def build(self, product: Product) -> nn.Module:
        return Int8Layer(product)


class Int8Layer(KernelLayer):
    """`codes` (O, I) int8, `scale` (O,) and `sums` (O,), those of the codes of a channel."""

    codes: Tensor
    scale: Tensor
    sums: Tensor

    def __init__(self, product: Product) -> None:
        super().__init__(product)
        codes = product.codes()
        self.keep("codes", codes.to(torch.int8))
        self.keep("scale", product.weight.format.step(product.parts).flatten())
        self.keep("sums", codes.sum(1, dtype=torch.int32))
        self.act: Any = copy.deepcopy(product.act)

    @property
    def weight(self) -> Tensor:
        """The dequantized weight (O, I), in the dtype of the net. Made anew at each use."""
        return (self.codes * self.scale[:, None]).to(self.get_buffer("like").dtype)

    def multiply(self, rows: Tensor) -> Tensor:
        codes, params = self.act.encode(rows)  # (M, I), (M, 1) or (1, 1)
        step = self.act.config.format.step(params)
        if "zero" not in params:
            total = int8_matmul(codes.to(torch.int8), self.codes)
        else:  # codes 0..255 become -128..127, and so does the zero point
            zero = params["zero"].to(torch.int32) - 128
            total = int8_matmul((codes - 128).to(torch.int8), self.codes) - zero * self.sums
        y = (total * step) * self.scale
        return (y if self.bias is None else y + self.bias).to(rows.dtype)


@config
class Int4:
    """Packed 4-bit weights in torch's own kernels: inputs stay in floating point (bfloat16 on a
    GPU). Groups of 32 to 256 weights share a scale; a whole row is cut into such groups.
    """

    def lacks(self, product: Product) -> str | None:
        format = product.weight.format
        if reason := product.no_matrix():
            return reason
        if product.act is not None:
            return "inputs in full precision"
        if not isinstance(format, Integer) or format.bits > 4 or format.group == "tensor":
            return "integer weights of up to 4 bits"
        if product.device.type == "cuda" and product.dtype != torch.bfloat16:
            return "a net in bfloat16"
        return int4_matmul.lacks(product.shape, _group(product), product.device)

    def runs(self, product: Product) -> str:
        return f"{str(product.dtype).removeprefix('torch.')} x int4"

    def build(self, product: Product) -> nn.Module:
        return Int4Layer(product)


class Int4Layer(KernelLayer):
    """`packed` and `worth` as `int4_matmul.pack_int4` leaves them."""

    packed: Tensor
    worth: Tensor

    def __init__(self, product: Product) -> None:
        super().__init__(product)
        format, parts = product.weight.format, product.parts
        assert isinstance(format, Integer)
        self.group = _group(product)
        repeats = self.in_features // self.group // format.step(parts).shape[1]
        scale = format.step(parts).repeat_interleave(repeats, 1)  # (O, I / G)
        zero = parts.get("zero", torch.zeros_like(format.step(parts))).repeat_interleave(repeats, 1)
        shift = 8 if format.rule != "asym" else 0  # signed codes become 0..15
        packed, worth = int4_matmul.pack_int4(
            product.codes() + shift, scale, zero.float() + shift, product.dtype
        )
        self.keep("packed", packed)
        self.register_buffer("worth", worth)  # has the dtype of the inputs it meets

    def multiply(self, rows: Tensor) -> Tensor:
        y = int4_matmul.int4_matmul(rows.contiguous(), self.packed, self.worth, self.group)
        return y if self.bias is None else y + self.bias


def _group(product: Product) -> int:
    """Weights of a group; of a whole row, the largest groups that cut it."""
    group, inputs = product.weight.format.group, product.shape[1]
    if isinstance(group, int):
        return group
    return next((g for g in int4_matmul.GROUPS if inputs % g == 0), inputs)


def _plain(product: Product) -> nn.Linear | nn.Conv2d:
    """A layer of the same settings with weights of its own."""
    packed, like = product.weight, product.weight.get_buffer("like")
    if not isinstance(packed, PackedConv2d):
        return nn.Linear(product.shape[1], product.shape[0]).to(like.device, like.dtype)
    settings: dict[str, Any] = {name: getattr(packed, name) for name in CONVOLUTION}
    return nn.Conv2d(**settings).to(like.device, like.dtype)


CONVOLUTION = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    "padding_mode",
)
