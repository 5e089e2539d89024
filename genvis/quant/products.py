"""The products of a quantized net: what a low-bit kernel can take over from fake quantization.

A product is a packed weight with what rounds its inputs. Rotations and whatever else was put around
it stay where they are, so a back-end sees nothing but numbers of known formats.
Letters: M rows, I inputs, O outputs.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genvis.quant.activations import DynamicInput, StaticInput
from genvis.quant.modules import PackedConv2d, PackedLayer, PreparedLayer
from genvis.quant.stored import Stored


@dataclass(frozen=True)
class Product:
    """`act` rounds the inputs; None: they stay as they are."""

    weight: PackedLayer
    act: DynamicInput | StaticInput | None

    @property
    def device(self) -> torch.device:
        return self.weight.get_buffer("like").device

    @property
    def dtype(self) -> torch.dtype:
        """Of the net around it."""
        return self.weight.get_buffer("like").dtype

    @property
    def axis(self) -> int:
        """Where the inputs of the layer are in what it is given."""
        return -3 if isinstance(self.weight, PackedConv2d) else -1

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I) of the matrix; a convolution that is one sees a pixel at a time."""
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def parts(self) -> dict[str, Tensor]:
        """What the format stores: codes as a bit stream, scales, ..."""
        return {name: self.weight.get_buffer(name) for name in self.weight.kept}

    def codes(self) -> Tensor:
        """The codes of the weight (O, I), int16."""
        return self.weight.format.codes(self.parts, self.weight.shape).reshape(self.shape)

    def no_matrix(self) -> str | None:
        """What would be a product of rows with one matrix, where this is none; else None."""
        layer = self.weight
        if not isinstance(layer, PackedConv2d):
            return None
        point = layer.kernel_size == layer.stride == (1, 1) and layer.groups == 1
        if point and layer.padding in ((0, 0), "valid", "same"):
            return None
        return "Linear layers and plain 1 x 1 convolutions"


class KernelLayer(Stored):
    """A layer that a low-bit kernel computes, from inputs that nobody has rounded yet.

    There are no gradients through it, and asking for one is an error.
    """

    def __init__(self, product: Product) -> None:
        super().__init__()
        self.axis, self.bias = product.axis, copy.deepcopy(product.weight.bias)
        self.out_features, self.in_features = product.shape
        self.register_buffer("like", product.weight.get_buffer("like").clone(), persistent=False)
        self.train(product.weight.training)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O), or (B, I, H, W) to (B, O, H, W)."""
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "low-bit kernels pass no gradients to their inputs; use the net as the plan left "
                "it, or the back-end fake"
            )
        rows = x.movedim(self.axis, -1)
        y = self.multiply(rows.reshape(-1, rows.shape[-1]))
        return y.unflatten(0, rows.shape[:-1]).movedim(-1, self.axis)

    def multiply(self, rows: Tensor) -> Tensor:
        """(M, O), with the bias, of inputs (M, I), in their dtype."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class Rounded(nn.Module):
    """A layer of full precision whose inputs are rounded first."""

    def __init__(self, act: nn.Module, layer: nn.Module, axis: int) -> None:
        super().__init__()
        self.act, self.layer, self.axis = act, layer, axis

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.act(x.movedim(self.axis, -1)).movedim(-1, self.axis))


def products(net: nn.Module) -> dict[str, Product]:
    """Every product in the net by the name of its layer."""
    found: dict[str, Product] = {}
    inner: set[int] = set()
    for name, module in net.named_modules():
        if isinstance(module, PreparedLayer) and isinstance(module.layer, PackedLayer):
            inner.add(id(module.layer))
            act = module.act if isinstance(module.act, DynamicInput | StaticInput) else None
            found[name] = Product(module.layer, act)
        elif isinstance(module, PackedLayer) and id(module) not in inner:
            found[name] = Product(module, None)
    return found


def with_layers(net: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of the net that computes each named product by another layer, from inputs that are not
    rounded yet.
    """
    known, new = products(net), {}
    for name, layer in layers.items():
        product = known[name]
        new[id(product.weight)] = layer
        if product.act is not None:
            new[id(product.act)] = nn.Identity()
    return copy.deepcopy(net, new)  # deepcopy takes what its memo holds instead of copying
