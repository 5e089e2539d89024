"""The range that a static quantizer is given, from batches of what passes it.

An observer summarises a batch (`see`), joins summaries in the order of the batches (`join`) and
turns the last one into a range (`range`). All ranges contain 0.

Sources: Jacob et al. 2018 (moving average); Banner et al. 2019, "Post-training 4-bit quantization",
and Choukroun et al. 2019, "Low-bit quantization of neural networks for efficient inference"
(least squared error);
Yuan et al. 2022, "PTQ4ViT" (squared gradients as weights).
"""

from typing import ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from genvis.config import config
from genvis.quant.format import Format
from genvis.quant.histogram import Histogram
from genvis.quant.search import least_error

S = TypeVar("S")
Range = tuple[Tensor, Tensor]  # low <= 0 <= high, scalars in float32


class Observer(Protocol[S]):
    # whether `see` wants an importance: squared gradients of the loss, shaped like x
    weighs: ClassVar[bool]

    def see(self, x: Tensor, importance: Tensor | None = None) -> S: ...
    def join(self, before: S, batch: S) -> S: ...
    def range(self, seen: S, format: Format) -> Range: ...


@config
class MinMax:
    """The extremes of all batches."""

    weighs: ClassVar[bool] = False

    def see(self, x: Tensor, importance: Tensor | None = None) -> Range:
        x = x.detach().float()
        if not x.isfinite().all():
            raise ValueError("numbers must be finite, there are NaN or infinite ones")
        return x.amin().clamp_max(0), x.amax().clamp_min(0)

    def join(self, before: Range, batch: Range) -> Range:
        return torch.minimum(before[0], batch[0]), torch.maximum(before[1], batch[1])

    def range(self, seen: Range, format: Format) -> Range:
        return seen


@config
class EMA(MinMax):
    """The moving average of the batches' extremes, which starts at those of the first."""

    momentum: float = 0.95

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")

    def join(self, before: Range, batch: Range) -> Range:
        m = self.momentum
        low, high = (m * old + (1 - m) * new for old, new in zip(before, batch, strict=True))
        return low, high


@config
class Percentile:
    """What a share of all numbers lies below, and the same share above; 1 is min-max."""

    share: float = 0.9999
    weighs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0.5 < self.share <= 1:
            raise ValueError(f"share must be in (0.5, 1], got {self.share}")

    def see(self, x: Tensor, importance: Tensor | None = None) -> Histogram:
        return Histogram.of(x)

    def join(self, before: Histogram, batch: Histogram) -> Histogram:
        return before.merge(batch)

    def range(self, seen: Histogram, format: Format) -> Range:
        low, high = -seen.mirrored().quantile(self.share), seen.quantile(self.share)
        device = seen.counts.device
        return torch.tensor(min(low, 0.0), device=device), torch.tensor(
            max(high, 0.0), device=device
        )


@config
class MSE:
    """The range of least squared error of the format, among shrunk ones."""

    steps: int = 100  # fractions of the full range that are tried
    weighs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def see(self, x: Tensor, importance: Tensor | None = None) -> Histogram:
        return Histogram.of(x)

    def join(self, before: Histogram, batch: Histogram) -> Histogram:
        return before.merge(batch)

    def range(self, seen: Histogram, format: Format) -> Range:
        used = seen.counts > 0
        numbers, weights = seen.centers()[used], seen.counts[used]
        ends = (numbers.new_tensor([[end]]) for end in (seen.low, seen.high))
        low, high = least_error(format, numbers[None, None], weights, *ends, steps=self.steps)
        return low.squeeze(), high.squeeze()


@config
class Hessian(MSE):
    """MSE with every number weighted by the squared gradient of the loss with respect to it: the
    diagonal of the Fisher matrix, which is the Hessian's expectation at the optimum.
    """

    weighs: ClassVar[bool] = True

    def see(self, x: Tensor, importance: Tensor | None = None) -> Histogram:
        if importance is None or importance.shape != x.shape:
            given = None if importance is None else tuple(importance.shape)
            raise ValueError(f"importance must be shaped like x {tuple(x.shape)}, got {given}")
        return Histogram.of(x, importance)
