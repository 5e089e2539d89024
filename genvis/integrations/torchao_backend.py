"""torchao's kernels as a back-end: its tensors are made from the codes and scales of our formats.

Nothing is rounded a second time, so a weight is the one that was saved, to the last bit. Inputs are
rounded by torchao's own rule, which the plan therefore has to name. It multiplies by 1 / s where
our formats divide by s, which only makes a difference at ties.

    weight                                     inputs                               where
    integers, a scale per channel or group     full precision                       anywhere
    integers, a scale per channel              8 bits per token, sym_half or asym   anywhere
    e4m3 or e5m2, a scale per channel          full precision                       anywhere
    e4m3, a scale per channel                  e4m3 per token                       capability 8.9
    MX e4m3 or e2m1                            the same                             capability 10.0

The last two want a net in bfloat16, and e4m3 inputs and outputs in multiples of 16.

Source: torchao 0.18. Letters: O outputs, I inputs.
"""

import importlib.util
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from genvis.config import config
from genvis.quant.activations import Dynamic
from genvis.quant.floating import Float
from genvis.quant.format import Format
from genvis.quant.integer import Integer
from genvis.quant.minifloat import E2M1, E4M3, E5M2, Minifloat
from genvis.quant.mx import MX
from genvis.quant.products import KernelLayer, Product


@config
class TorchAO:
    """Takes what the table above says, of any layer that is a product with one matrix."""

    def lacks(self, product: Product) -> str | None:
        if importlib.util.find_spec("torchao") is None:
            raise ImportError("the back-end torchao needs the package torchao, 0.18 or later")
        family = FAMILIES.get(type(product.weight.format))
        return product.no_matrix() or (
            "int, float and mx weights" if family is None else family.lacks(product)
        )

    def runs(self, product: Product) -> str:
        numbers = FAMILIES[type(product.weight.format)].numbers(product)
        plain = str(product.dtype).removeprefix("torch.")
        return f"{plain if product.act is None else numbers} x {numbers}"

    def build(self, product: Product) -> nn.Module:
        return TorchAOLayer(product)


class TorchAOLayer(KernelLayer):
    """`weight` is a tensor of torchao's that rounds what it meets, where the plan asks for it."""

    def __init__(self, product: Product) -> None:
        super().__init__(product)
        weight = FAMILIES[type(product.weight.format)].tensor(product)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def multiply(self, rows: Tensor) -> Tensor:
        return nn.functional.linear(rows, self.weight, self.bias)


class Family(Protocol):
    """The weights of one kind of format."""

    def lacks(self, product: Product) -> str | None: ...
    def numbers(self, product: Product) -> str: ...
    def tensor(self, product: Product) -> Tensor: ...


class Integers:
    def lacks(self, product: Product) -> str | None:
        weight, act = product.weight.format, _act(product)
        assert isinstance(weight, Integer)
        if weight.rule == "asym" or weight.group == "tensor":
            return "symmetric integer weights with a scale per channel or group"
        if product.act is None:
            return None
        if weight.group is not None:
            return "a weight scale per channel, where inputs are integers too"
        if isinstance(act, Integer) and (act.bits, act.group, act.scale) == (8, None, "float32"):
            return None if act.rule in MAPPINGS else "inputs by the rules sym_half and asym"
        return "8-bit inputs with a range of each token"

    def numbers(self, product: Product) -> str:
        return "int8"

    def tensor(self, product: Product) -> Tensor:
        from torchao.quantization import PerRow
        from torchao.quantization.quant_primitives import MappingType
        from torchao.quantization.quantize_.workflows import (
            Int8Tensor,
            QuantizeTensorToInt8Kwargs,
        )

        act, scale = _act(product), product.weight.format.step(product.parts)
        given = None
        if isinstance(act, Integer):
            given = QuantizeTensorToInt8Kwargs(PerRow(), MappingType[MAPPINGS[act.rule]])
        codes = product.codes().to(torch.int8)
        block = [1, product.shape[1] // scale.shape[1]]
        return Int8Tensor(codes, scale, block, product.dtype, act_quant_kwargs=given)


class Floats:
    def lacks(self, product: Product) -> str | None:
        weight, act = product.weight.format, _act(product)
        assert isinstance(weight, Float)
        if weight.element not in DTYPES or weight.group is not None:
            return "e4m3 and e5m2 weights with a scale per channel"
        if product.act is None:
            return None
        if act != Float(element=E4M3) or weight.element != E4M3:
            return "e4m3 inputs with a range of each token, where inputs are rounded"
        if any(size % 16 for size in product.shape):
            return "inputs and outputs in multiples of 16, where inputs are e4m3"
        return _capability(product, (8, 9)) or _bfloat16(product)

    def numbers(self, product: Product) -> str:
        return str(product.weight.format.element)  # type: ignore[attr-defined]

    def tensor(self, product: Product) -> Tensor:
        from torchao.float8.inference import Float8MMConfig
        from torchao.quantization import PerRow
        from torchao.quantization.quantize_.workflows import (
            Float8Tensor,
            QuantizeTensorToFloat8Kwargs,
        )

        format = product.weight.format
        assert isinstance(format, Float)
        dtype = DTYPES[format.element]
        given = None if product.act is None else QuantizeTensorToFloat8Kwargs(dtype, PerRow())
        return Float8Tensor(
            product.codes().to(torch.uint8).view(dtype),  # our codes are the bytes of torch's
            format.step(product.parts),
            block_size=[1, product.shape[1]],
            mm_config=Float8MMConfig(use_fast_accum=True),
            act_quant_kwargs=given,
            dtype=product.dtype,
        )


class Blocks:
    def lacks(self, product: Product) -> str | None:
        format = product.weight.format
        assert isinstance(format, MX)
        if format.element not in (E4M3, E2M1) or format.group != 32:
            return "mx weights of e4m3 and e2m1 in blocks of 32"
        if _act(product) != format:
            return "inputs in the format of the mx weights"
        return _bfloat16(product) or _capability(product, (10, 0))

    def numbers(self, product: Product) -> str:
        return f"mx {product.weight.format.element}"  # type: ignore[attr-defined]

    def tensor(self, product: Product) -> Tensor:
        return mx_tensor(product, "auto")


def mx_tensor(product: Product, kernels: str) -> Any:
    """The MX weight with its rule for inputs. `kernels`: "auto", or "emulated" for machines that
    have none. MX numbers are rounded to themselves, so the weight stays what it is.
    """
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import MXTensor, QuantizeTensorToMXKwargs
    from torchao.quantization.quantize_.common.kernel_preference import KernelPreference

    format = product.weight.format
    assert isinstance(format, MX)
    element = torch.float4_e2m1fn_x2 if format.element == E2M1 else DTYPES[format.element]
    shared: dict[str, Any] = {
        "block_size": format.group,
        "scaling_mode": ScaleCalculationMode(format.rule),
        "kernel_preference": KernelPreference(kernels),
        "is_swizzled_scales": True,
    }
    given = QuantizeTensorToMXKwargs(elem_dtype=element, **shared)
    weight = product.weight.weight.reshape(product.shape).to(torch.bfloat16)
    return MXTensor.to_mx(weight, element, act_quant_kwargs=given, **shared)


FAMILIES: dict[type[Format], Family] = {Integer: Integers(), Float: Floats(), MX: Blocks()}
DTYPES: dict[Minifloat, torch.dtype] = {E4M3: torch.float8_e4m3fn, E5M2: torch.float8_e5m2}
MAPPINGS = {"sym_half": "SYMMETRIC", "asym": "ASYMMETRIC"}


def _act(product: Product) -> Format | None:
    """The format of inputs that are rounded as they come; None for others."""
    act = None if product.act is None else product.act.config
    return act.format if isinstance(act, Dynamic) else None


def _bfloat16(product: Product) -> str | None:
    return None if product.dtype == torch.bfloat16 else "a net in bfloat16, for inputs of these"


def _capability(product: Product, least: tuple[int, int]) -> str | None:
    device = product.device
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= least:
        return None
    return "a GPU of capability {}.{}, for inputs of these numbers".format(*least)
