"""Ranges of input channels apart: y = W_1 x_1 + W_2 x_2 + b, each with formats of its own.

For layers on a concatenation, such as the long skips of a U-Net, whose parts have other ranges.

Source: Li et al. 2023, "Q-Diffusion" (shortcut splitting), as in the code of Zhao et al. 2024,
"MixDQ".
"""

from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from genvis.config import config
from genvis.quant.modules import QuantizedLayer
from genvis.quant.transform import AXES, Layer, Rest, Seen, inputs, ungrouped, with_weight


class Parts(QuantizedLayer):
    """The sum of `layers`, each on as many of the inputs as `sizes` says."""

    def __init__(self, layers: list[nn.Module], sizes: list[int], like: Layer) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(layers)
        self.sizes, self.axis = sizes, AXES[type(like)]
        self.format = getattr(layers[0], "format", None)
        self.activation = getattr(layers[0], "activation", None)
        self.train(like.training)

    @property
    def weight(self) -> Tensor:
        return torch.cat([layer.weight for layer in self.layers], 1)

    @property
    def bias(self) -> Tensor | None:
        return self.layers[0].bias

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.layers, x.split(self.sizes, self.axis), strict=True)
        first, *others = (layer(part) for layer, part in parts)
        return sum(others, first)


@config
class Split:
    at: tuple[int, ...]  # the first channels of all parts but the first, rising
    needs_data: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.at or list(self.at) != sorted(set(self.at)) or self.at[0] < 1:
            raise ValueError(f"at must be rising channel numbers of at least 1, got {self.at}")

    def apply(self, layer: Layer, rest: Rest, seen: Seen | None) -> nn.Module:
        ungrouped(layer, "split")
        if self.at[-1] >= inputs(layer):
            raise ValueError(f"at must be below the {inputs(layer)} inputs here, got {self.at}")
        sizes = [b - a for a, b in pairwise((0, *self.at, inputs(layer)))]
        axis, made = AXES[type(layer)], list[nn.Module]()
        for i, weight in enumerate(layer.weight.detach().split(sizes, 1)):
            part = with_weight(layer, weight, layer.bias if i == 0 else None)
            own = None if seen is None else [x.split(sizes, axis)[i] for x in seen]
            made.append(rest.make(part, own))
        return Parts(made, sizes, layer)
