"""The inputs that are far larger than the others, in full precision: y = W_1 x_1 + W_2 x_2.

Source: Dettmers et al. 2022, "LLM.int8()", which takes the inputs that exceed 6
anywhere in a batch; here they are chosen once, on data, so that an image does not depend on its
batch and what is saved has one shape.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from genvis.config import config
from genvis.quant.modules import Around
from genvis.quant.transform import (
    AXES,
    Layer,
    Rest,
    Seen,
    inputs,
    through,
    tokens,
    ungrouped,
    with_weight,
)


class Decomposed(Around):
    """`layer` on the inputs without those at `columns` (J,), and `exact` on these alone."""

    columns: Tensor

    def __init__(self, layer: nn.Module, exact: Layer, columns: Tensor) -> None:
        super().__init__(layer)
        self.exact, self.axis = exact, AXES[type(exact)]
        self.register_buffer("columns", columns)

    @property
    def weight(self) -> Tensor:
        return self.layer.weight.index_add(1, self.columns, self.exact.weight)

    def forward(self, x: Tensor) -> Tensor:
        rest = x.index_fill(self.axis, self.columns, 0)
        return self.layer(rest) + self.exact(x.index_select(self.axis, self.columns))


@config
class Outliers:
    columns: int = 8
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.columns < 1:
            raise ValueError(f"columns must be at least 1, got {self.columns}")

    def apply(self, layer: Layer, rest: Rest, seen: Seen | None) -> nn.Module:
        ungrouped(layer, "outliers")
        if self.columns > inputs(layer):
            raise ValueError(f"columns must be at most {inputs(layer)} here, got {self.columns}")
        columns = self._find(layer, seen)
        weight: Any = layer.weight.detach()
        exact = with_weight(layer, weight.index_select(1, columns), None)
        # zeros keep the layer's shape, and with it every group of a format
        inner = with_weight(layer, weight.index_fill(1, columns, 0), layer.bias)
        moved = through(lambda x: x.index_fill(-1, columns, 0), layer, seen)
        return Decomposed(rest.make(inner, moved), exact, columns)

    def _find(self, layer: Layer, seen: Seen | None) -> Tensor:
        if seen is None:
            return torch.arange(self.columns, device=layer.weight.device)
        largest = tokens(layer, seen).abs().amax(0)
        return largest.topk(self.columns).indices.sort().values
