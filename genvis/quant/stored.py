"""Modules that hold numbers whose type is part of their meaning."""

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn


class Stored(nn.Module):
    """Casting the network moves the buffers named in `kept` but does not round them."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: tuple[str, ...] = ()

    def keep(self, name: str, tensor: Tensor) -> None:
        """Register a buffer that keeps its type."""
        self.register_buffer(name, tensor)
        self.kept = (*self.kept, name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = [self.get_buffer(name) for name in self.kept]

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype != tensor.dtype and any(tensor is buffer for buffer in kept):
                return tensor.to(moved.device)
            return moved

        return super()._apply(move, recurse)
