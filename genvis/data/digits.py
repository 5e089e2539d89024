"""scikit-learn's 1,797 real handwritten digits, 8 x 8, ten classes; inside the package, so no
network.

Source: Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits" (the test part), as in
`sklearn.datasets.load_digits`. Every sixth image (index % 6 == 0) is held out: 1,497 for training,
300 held out.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F

from genvis.config import config
from genvis.types import Batch, Cond

Split = Literal["train", "val"]


@config
class DigitsConfig:
    size: Literal[8, 16, 32] = 8  # above 8: bicubic upsampling

    def build(self, split: Split) -> "Digits":
        return Digits(self.size, split)


class Digits:
    """images (N, 3, size, size) in [-1, 1], the three channels equal; labels (N,)."""

    def __init__(self, size: int, split: Split) -> None:
        from sklearn.datasets import load_digits

        if split not in ("train", "val"):
            raise ValueError(f"split must be train or val, got {split!r}")
        raw = load_digits()
        held_out = torch.arange(len(raw.target)) % 6 == 0
        rows = held_out if split == "val" else ~held_out
        values = torch.tensor(raw.images, dtype=torch.float32)[rows, None]  # 0..16
        images = values / 8 - 1
        if size != 8:
            images = F.interpolate(images, size=(size, size), mode="bicubic").clamp(-1, 1)
        self.images = images.expand(-1, 3, -1, -1)
        self.labels = torch.tensor(raw.target, dtype=torch.int64)[rows]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        rows = torch.as_tensor(indices)
        return Batch(self.images[rows], Cond(label=self.labels[rows]))
