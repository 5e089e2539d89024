"""Linear and convolution layers whose weight is stored packed and unpacked when used.

Each computes bit for bit what the original layer would compute with `format.fake(weight)` as
weight, also under autocast. In a state dict: the parts of the format (`codes`, `scale`) and `bias`.
"""

import copy
from collections.abc import Callable
from typing import Self

from torch import Tensor, nn
from torch.nn import functional

from genvis.quant import Format


class PackedLayer(nn.Module):
    """The packed weight and the bias (a copy) of a layer, which is not written into."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, format: Format) -> None:
        super().__init__()
        parts = format.pack(layer.weight.detach())
        self.format = format
        self.shape = tuple(layer.weight.shape)
        self.parts = tuple(parts)
        for name, part in parts.items():
            self.register_buffer(name, part)
        self.bias = copy.deepcopy(layer.bias)
        # follows the net through casts, so that the weight has the dtype of its neighbours
        self.register_buffer("like", layer.weight.new_empty(0), persistent=False)
        self.train(layer.training)

    @property
    def weight(self) -> Tensor:
        """The dequantized weight, in the dtype of the net. Made anew at each use."""
        parts = {name: self.get_buffer(name) for name in self.parts}
        return self.format.unpack(parts, self.shape).to(self.get_buffer("like").dtype)

    def extra_repr(self) -> str:
        return f"{'x'.join(map(str, self.shape))}, bias={self.bias is not None}, {self.format}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        stored = [self.get_buffer(name) for name in self.parts]

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype != tensor.dtype and any(tensor is part for part in stored):
                return tensor.to(moved.device)  # casting the net must not round its scales
            return moved

        return super()._apply(move, recurse)


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


# exact types: a subclass may use its weight in another way
PACKED: dict[type[nn.Module], Callable[..., PackedLayer]] = {
    nn.Linear: PackedLinear,
    nn.Conv2d: PackedConv2d,
}
