"""Rotation of the inputs by a fixed Hadamard matrix: `genvis.quant.rotation`."""

from typing import ClassVar

from torch import Tensor, nn

from genvis.config import config
from genvis.quant.modules import Around
from genvis.quant.rotation import Rotation, block_size, rotated
from genvis.quant.transform import AXES, Layer, Rest, Seen, through, with_weight


class Rotated(Around):
    """`layer` on rotated inputs."""

    def __init__(self, layer: nn.Module, size: int, like: Layer) -> None:
        super().__init__(layer)
        self.rotation, self.axis = Rotation(size), AXES[type(like)]

    @property
    def weight(self) -> Tensor:
        return rotated(self.layer.weight, self.rotation.size)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.rotation(x.movedim(self.axis, -1)).movedim(-1, self.axis))


@config
class Rotate:
    needs_data: ClassVar[bool] = False

    def apply(self, layer: Layer, rest: Rest, seen: Seen | None) -> nn.Module:
        size = block_size(layer.weight.shape[1])  # of a convolution: of one of its groups
        inner = with_weight(layer, rotated(layer.weight.detach(), size), layer.bias)
        return Rotated(rest.make(inner, through(Rotation(size), layer, seen)), size, layer)
