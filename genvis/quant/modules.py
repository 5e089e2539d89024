"""Linear and convolution layers in the formats that they were given.

A packed layer keeps its weight as codes and unpacks it when it is used: it computes bit for bit
what the original would with `format.fake(weight)` as weight, also under autocast. In a state dict:
the parts of the format (`codes`, `scale`, ...) and `bias`. A `PreparedLayer` quantizes what comes
in before such a layer, or a plain one, sees it. Around both are the transformations' modules.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from genvis.quant.activations import Activation
from genvis.quant.blocks import count
from genvis.quant.format import Format
from genvis.quant.rounding import NEAREST, Rounding
from genvis.quant.stored import Stored
from genvis.quant.transform import AXES, Layer, Seen, inputs


class QuantizedLayer(Stored):
    """A layer under a rule; the outermost module of it where there are several.

    It has a `bias` as well, None or not.
    """

    format: Format | None = None  # of the weight
    activation: Activation | None = None

    @property
    def weight(self) -> Tensor:
        """The weight of a plain layer that would do the same to exact inputs."""
        raise NotImplementedError


class PackedLayer(QuantizedLayer):
    """The packed weight and the bias (a copy) of a layer, which is not written into.

    parts: what the format stores of the weight; without, that of the weight rounded to nearest.
    """

    format: Format

    def __init__(
        self, layer: Layer, format: Format, parts: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.format = format
        self.shape = tuple(layer.weight.shape)
        for name, part in (parts or format.pack(layer.weight.detach())).items():
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

    def extra_repr(self) -> str:
        return f"{'x'.join(map(str, self.shape))}, bias={self.bias is not None}, {self.format}"


class PackedLinear(PackedLayer):
    def __init__(
        self, layer: nn.Linear, format: Format, parts: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(layer, format, parts)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return functional.linear(x, self.weight, self.bias)


class PackedConv2d(PackedLayer):
    def __init__(
        self, layer: nn.Conv2d, format: Format, parts: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(layer, format, parts)
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


class Around(QuantizedLayer):
    """Something around another layer, `layer`, plain or quantized."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer: Any = layer
        self.format = getattr(layer, "format", None)
        self.activation = getattr(layer, "activation", None)
        self.train(layer.training)

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias


class PreparedLayer(Around):
    """A layer whose input is quantized. Zeros that a convolution pads with stay zeros."""

    def __init__(self, act: Activation, layer: nn.Module, like: Layer) -> None:
        super().__init__(layer)
        self.activation, self.axis = act, AXES[type(like)]
        self.act = act.build().to(like.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.act(x.movedim(self.axis, -1)).movedim(-1, self.axis))


class Calibrated(Around):
    """A layer with numbers that were found on data; `found` (bool) says whether they were."""

    found: Tensor

    def __init__(self, layer: nn.Module, found: bool, device: torch.device) -> None:
        super().__init__(layer)
        self.register_buffer("found", torch.tensor(found, device=device))
        self.calibrated = found

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.calibrated = bool(self.found)

    def forward(self, x: Tensor) -> Tensor:
        if not self.calibrated:
            raise ValueError("a layer waits for data that its rule needs: apply the plan with it")
        return self.layer(x)


# exact types: a subclass may use its weight in another way
PACKED: dict[type[nn.Module], Callable[..., PackedLayer]] = {
    nn.Linear: PackedLinear,
    nn.Conv2d: PackedConv2d,
}


def quantized(
    layer: Layer,
    weight: Format | None,
    act: Activation | None,
    rounding: Rounding = NEAREST,
    seen: Seen | None = None,
) -> nn.Module:
    """A layer like `layer`, which keeps its own, in the given formats; None is full precision.

    `seen` is for a rounding that needs data. ValueError if a format does not fit the layer.
    """
    made: nn.Module
    if weight is None:
        made = copy.deepcopy(layer)
    else:
        rounded, parts = rounding.pack(layer, weight, act, seen)
        made = PACKED[type(layer)](rounded, weight, parts)
    if act is None:
        return made
    try:
        count((1, inputs(layer)), act.format.group)
    except ValueError as error:
        raise ValueError(f"act: {error}") from error
    return PreparedLayer(act, made, layer)


def quantized_layers(net: nn.Module) -> dict[str, QuantizedLayer]:
    """The layers of `net` that a plan made, by name."""
    found: dict[str, QuantizedLayer] = {}
    inner: set[int] = set()
    for name, module in net.named_modules():
        if isinstance(module, QuantizedLayer) and id(module) not in inner:
            inner |= {id(part) for part in module.modules()}
            found[name] = module
    return found
