"""How the numbers of a weight become codes: each on its own, or all of a layer together.

`genvis.quant.gptq` and `genvis.quant.adaquant` look at what the layer is used on.
"""

from collections.abc import Mapping
from typing import ClassVar, Protocol

from torch import Tensor

from genvis.config import config
from genvis.quant.activations import Activation
from genvis.quant.format import Format
from genvis.quant.transform import Layer, Seen


class Rounding(Protocol):
    @property
    def needs_data(self) -> bool:
        """Whether it looks at what the layer was called with."""
        ...

    def pack(
        self, layer: Layer, format: Format, act: Activation | None, seen: Seen | None
    ) -> tuple[Layer, Mapping[str, Tensor]]:
        """A layer whose bias to use, `layer` itself or another, and what to store of the weight.

        Without `seen` both are placeholders for those of a file.
        """
        ...


@config
class Nearest:
    """Every weight to the nearest number of its format."""

    needs_data: ClassVar[bool] = False

    def pack(
        self, layer: Layer, format: Format, act: Activation | None, seen: Seen | None
    ) -> tuple[Layer, Mapping[str, Tensor]]:
        return layer, format.pack(layer.weight.detach())


NEAREST = Nearest()
