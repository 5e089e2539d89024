"""`fake`: noisy Gaussian blobs, to try the plumbing at any size; the label is where the blob is."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from genvis.config import config
from genvis.random import HashKeys
from genvis.types import Batch, Cond


@config
class FakeConfig:
    size: int = 32
    classes: int = 10
    count: int = 1_024
    held_out: int = 256

    def __post_init__(self) -> None:
        if min(self.size, self.classes, self.count, self.held_out) < 1:
            raise ValueError("size, classes, count and held_out must be at least 1")

    def build(self, split: str) -> "Fake":
        return Fake(self, split)


class Fake:
    def __init__(self, config: FakeConfig, split: str) -> None:
        if split not in ("train", "val"):
            raise ValueError(f"split must be train or val, got {split!r}")
        self.config, self.split = config, split

    def __len__(self) -> int:
        return self.config.count if self.split == "train" else self.config.held_out

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        rows = torch.as_tensor(indices)
        keys = HashKeys.of(6, rows).fold(self.split)
        label = rows % self.config.classes
        angle = 2 * math.pi * label / self.config.classes
        images = blob(0.6 * angle.cos(), 0.6 * angle.sin(), self.config.size)
        noise = 0.1 * keys.normal((3, self.config.size, self.config.size))
        return Batch((images + noise).clamp(-1, 1), Cond(label=label))


def blob(x: Tensor, y: Tensor, size: int) -> Tensor:
    """Bright spots at (x, y) in [-1, 1] on dark, (B,) each -> (B, 1, size, size) in [-1, 1]."""
    axis = (torch.arange(size) + 0.5) * 2 / size - 1
    squares = (axis - x[:, None]) ** 2, (axis - y[:, None]) ** 2
    return 2 * torch.exp(-(squares[1][:, None, :, None] + squares[0][:, None, None]) / 0.18) - 1
