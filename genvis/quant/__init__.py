"""Weight quantization: what a number format means, how it is stored, and which layers get which.

A format is one frozen dataclass and one line of `FORMATS`. Its `fake` defines its meaning; `pack`
and `unpack` are the same through the bytes that a saved model holds. Plans (`genvis.quant.plan`)
assign formats to layers by name.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from genvis.config import Table


class Format(Protocol):
    """How the weight of one layer, (O, ...) with output channels first, is represented."""

    def fake(self, weight: Tensor) -> Tensor:
        """The weight as quantized: same shape and dtype. ValueError if that cannot be done."""
        ...

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """The tensors to store, by the names that they have in a state dict."""
        ...

    def unpack(self, parts: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """The weight, float32, from what `pack` stored for a weight of `shape`."""
        ...

    def storage_bytes(self, shape: Sequence[int]) -> int:
        """The bytes of what `pack` stores for a weight of `shape`."""
        ...


FORMATS = Table("weight format", {"int": "genvis.quant.integer:Integer"})
