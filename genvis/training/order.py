"""Which examples each step sees, and how they are augmented: functions of (seed, step, rank) and of
nothing else, so resuming is exact.

Position p of the endless stream of examples is example permutation(epoch)[p mod N] of epoch p div
N. Step s takes positions s B, ..., (s + 1) B - 1; processes and micro-batches take consecutive
parts of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from genvis.random import HashKeys, permutation
from genvis.types import Batch, Dataset


@dataclass(frozen=True)
class Order:
    examples: int
    batch: int
    accumulate: int
    seed: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise ValueError("the dataset is empty")
        if self.batch % (self.accumulate * self.world):
            raise ValueError(
                f"batch must be divisible by accumulate x processes, got {self.batch} and "
                f"{self.accumulate} x {self.world}"
            )

    def positions(self, step: int, micro: int) -> Tensor:
        """The stream positions of one micro-batch of this process, (B / (accumulate world),)."""
        rows = self.batch // (self.accumulate * self.world)
        start = step * self.batch + (micro * self.world + self.rank) * rows
        return torch.arange(start, start + rows)

    def examples_at(self, positions: Tensor) -> list[int]:
        return [
            int(_shuffled(self.examples, self.seed, p // self.examples)[p % self.examples])
            for p in positions.tolist()
        ]


@lru_cache(maxsize=2)
def _shuffled(n: int, seed: int, epoch: int) -> Tensor:
    return permutation(n, seed, epoch)


@dataclass(frozen=True)
class _Examples:
    """A map from positions to batches, which is what loader processes need."""

    data: Dataset
    order: Order

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, positions: Tensor) -> tuple[Tensor, Batch]:
        examples = self.order.examples_at(positions)
        if not hasattr(self.data, "augmented"):
            return positions, self.data[examples]
        keys = HashKeys.of(self.order.seed, positions).fold("data")
        return positions, self.data.augmented(examples, keys)


@dataclass(frozen=True)
class _Positions:
    """The positions of every micro-batch of the given steps, made when asked for."""

    order: Order
    steps: range

    def __len__(self) -> int:
        return len(self.steps) * self.order.accumulate

    def __iter__(self) -> Iterator[Tensor]:
        for step in self.steps:
            for micro in range(self.order.accumulate):
                yield self.order.positions(step, micro)


def stream(
    data: Dataset, order: Order, steps: range, workers: int
) -> Iterator[tuple[Tensor, Batch]]:
    """(positions, batch) of every micro-batch of the given steps, in order."""
    loader: DataLoader[Any] = DataLoader(
        _Examples(data, order),  # type: ignore[arg-type]
        batch_size=None,
        sampler=_Positions(order, steps),
        num_workers=workers,
        generator=torch.Generator(),  # its own: starting a loader must not touch the global one
    )
    return iter(loader)
