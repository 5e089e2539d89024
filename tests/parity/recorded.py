"""Recorded noise in the place of keys."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Recorded:
    """Keys that read noises (steps, B, ...) from a record: `fold(purpose, k)` is its k-th entry."""

    noises: Tensor
    k: int = -1

    def fold(self, *words: int | str) -> Self:
        return replace(self, k=int(words[-1]))

    def split(self, n: int) -> Self:
        raise NotImplementedError("a record has one row each")

    def normal(self, shape: Sequence[int], device: torch.device | str | None = None) -> Tensor:
        noise = self.noises[self.k]
        assert tuple(noise.shape[1:]) == tuple(shape)
        return noise

    def uniform(
        self, shape: Sequence[int] = (), device: torch.device | str | None = None
    ) -> Tensor:
        raise NotImplementedError("a record has no uniforms")
