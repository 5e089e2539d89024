"""Images that are computed from their number."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genvis.images import from_uint8


class Drawn:
    """`draw(i)`, an image (size, size, 3) uint8, for i < count: made when first asked for, then
    kept (count x 3 x size^2 bytes once all were asked for).
    """

    def __init__(self, count: int, size: int, draw: Callable[[int], NDArray[np.uint8]]) -> None:
        if min(count, size) < 1:
            raise ValueError(f"count and size must be at least 1, got {count} and {size}")
        self.draw = draw
        self.kept = torch.empty(count, 3, size, size, dtype=torch.uint8)
        self.made = torch.zeros(count, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, indices: Sequence[int]) -> Tensor:
        """Images (B, 3, size, size) in [-1, 1]."""
        for i in indices:
            if not self.made[i]:
                self.kept[i] = torch.from_numpy(self.draw(i)).permute(2, 0, 1)
                self.made[i] = True
        return from_uint8(self.kept[torch.as_tensor(indices)])
