"""Linear and convolution layers in the formats that they were given.

A packed layer keeps its weight as codes and unpacks it when it is used: it computes bit for bit
what the original would with `format.fake(weight)` as weight, also under autocast. In a state dict:
the parts of the format (`codes`, `scale`, ...) and `bias`. A `PreparedLayer` rotates or quantizes
what comes in before such a layer, or a plain one, sees it.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from genvis.quant.activations import Activation
from genvis.quant.blocks import count
from genvis.quant.format import Format
from genvis.quant.rotation import Rotation, block_size, rotated
from genvis.quant.stored import Stored


class PackedLayer(Stored):
    """The packed weight and the bias (a copy) of a layer, which is not written into."""

    activation: Activation | None = None

    def __init__(self, layer: nn.Linear | nn.Conv2d, format: Format) -> None:
        super().__init__()
        self.format = format
        self.shape = tuple(layer.weight.shape)
        for name, part in format.pack(layer.weight.detach()).items():
            self.keep(name, part)
        self.bias = copy.deepcopy(layer.bias)
        # follows the net through casts, so that the weight has the dtype of its neighbours
        self.register_buffer("like", layer.weight.new_empty(0), persistent=False)
        self.train(layer.training)

    @property
    def weight(self) -> Tensor:
        """The dequantized weight, in the dtype of the net. Made anew at each use."""
        parts = {name: self.get_buffer(name) for name in self.kept}
        return self.format.unpack(parts, self.shape).to(self.get_buffer("like").dtype)

    def original_weight(self) -> Tensor:
        """The weight of a plain layer that would do the same to exact inputs."""
        return self.weight

    def extra_repr(self) -> str:
        return f"{'x'.join(map(str, self.shape))}, bias={self.bias is not None}, {self.format}"


class PackedLinear(PackedLayer):
    def __init__(self, layer: nn.Linear, format: Format) -> None:
        super().__init__(layer, format)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return functional.linear(x, self.weight, self.bias)


class PackedConv2d(PackedLayer):
    def __init__(self, layer: nn.Conv2d, format: Format) -> None:
        super().__init__(layer, format)
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.kernel_size, self.stride = layer.kernel_size, layer.stride
        self.padding, self.padding_mode = layer.padding, layer.padding_mode
        self.dilation, self.groups = layer.dilation, layer.groups
        # the border in the order of functional.pad, with "same" resolved to numbers
        self._border = layer._reversed_padding_repeated_twice

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H', W')."""
        if self.padding_mode == "zeros":
            return self._convolve(x, self.padding)
        return self._convolve(functional.pad(x, self._border, mode=self.padding_mode), 0)

    def _convolve(self, x: Tensor, padding: str | int | tuple[int, ...]) -> Tensor:
        return functional.conv2d(
            x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )


class PreparedLayer(nn.Module):
    """A layer whose input is rotated first, then quantized, either or both.

    The weight of `layer` is that for rotated inputs. Zeros that a convolution pads with stay zeros.
    """

    def __init__(
        self,
        layer: nn.Linear | nn.Conv2d,
        weight: Format | None,
        act: Activation | None,
        rotate: bool,
    ) -> None:
        super().__init__()
        inputs = layer.weight.shape[1]  # of a convolution: of one of its groups
        size = block_size(inputs) if rotate else 1
        self.format, self.activation = weight, act
        self.rotation = Rotation(size) if rotate else nn.Identity()
        inner = copy.deepcopy(layer)
        if rotate:
            with torch.no_grad():
                inner.weight.copy_(rotated(layer.weight, size))
        self.axis = AXES[type(layer)]
        self.act = nn.Identity() if act is None else _built(act, layer)
        self.layer = inner if weight is None else PACKED[type(layer)](inner, weight)
        self.train(layer.training)

    @property
    def weight(self) -> Tensor:
        """The weight that meets the prepared input."""
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias

    def original_weight(self) -> Tensor:
        """The weight of a plain layer that would do the same to exact inputs."""
        rotation, weight = self.rotation, self.layer.weight
        return rotated(weight, rotation.size) if isinstance(rotation, Rotation) else weight

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.act(self.rotation(x.movedim(self.axis, -1)))
        return self.layer(tokens.movedim(-1, self.axis))


def _built(act: Activation, layer: nn.Linear | nn.Conv2d) -> nn.Module:
    inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    try:
        count((1, inputs), act.format.group)
    except ValueError as error:
        raise ValueError(f"act: {error}") from error
    return act.build().to(layer.weight.device)


# exact types: a subclass may use its weight in another way
PACKED: dict[type[nn.Module], Callable[..., PackedLayer]] = {
    nn.Linear: PackedLinear,
    nn.Conv2d: PackedConv2d,
}
AXES: dict[type[nn.Module], int] = {nn.Linear: -1, nn.Conv2d: -3}  # where the inputs are


def quantized(
    layer: nn.Linear | nn.Conv2d, weight: Format | None, act: Activation | None, rotate: bool
) -> nn.Module:
    """A layer like `layer`, which keeps its own, in the given formats; None is full precision.

    ValueError if a format does not fit the layer.
    """
    if act is not None or rotate:
        return PreparedLayer(layer, weight, act, rotate)
    return copy.deepcopy(layer) if weight is None else PACKED[type(layer)](layer, weight)


def quantized_layers(net: nn.Module) -> dict[str, PackedLayer | PreparedLayer]:
    """The layers of `net` that `quantized` made, by name."""
    found: dict[str, PackedLayer | PreparedLayer] = {}
    inner: set[int] = set()
    for name, module in net.named_modules():
        if isinstance(module, PreparedLayer):
            inner.add(id(module.layer))
        if isinstance(module, PackedLayer | PreparedLayer) and id(module) not in inner:
            found[name] = module
    return found
