"""Another objective, with weights pulled to the numbers that they are rounded to.

    loss + l(k) sum over layers of |w - w_hat|^2,   w_hat held fixed

A weight whose best value lies between two numbers of its format jumps from one to the other at
every few steps; its latent value then says nothing of which is better, and averages of weights mix
the two. The pull grows along a cosine from nothing to l, so that weights first find their place.

Source: Nagel et al. 2022, "Overcoming oscillations in quantization-aware training".
Letters: k step, l the weight at the end, w weights that are not clipped, w_hat as quantized.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from genvis.config import config
from genvis.objectives import OBJECTIVES
from genvis.quant.aware import aware_layers
from genvis.random import Keys
from genvis.types import Batch, Loss, LossFunction, Objective


@config
class Damped:
    objective: Annotated[Objective, OBJECTIVES]
    weight: float  # l
    steps: int  # within which it grows: those of the run

    def __post_init__(self) -> None:
        if self.weight < 0 or self.steps < 1:
            raise ValueError("weight must be at least 0 and steps at least 1")

    def build(self, model: Any) -> "DampedLoss":
        """ValueError where nothing is trained through a format."""
        if not aware_layers(model.net):
            raise ValueError("damped is for networks with the change quantize_aware")
        return DampedLoss(self, self.objective.build(model), self.weight)


@dataclass(frozen=True)
class DampedLoss:
    """The other objective's loss function with more to pay; in validation only logged."""

    objective: Damped
    inner: LossFunction
    weight: float

    def at(self, step: int) -> "DampedLoss":
        inner: Any = self.inner
        share = (1 - math.cos(math.pi * min(1.0, step / self.objective.steps))) / 2
        return replace(
            self,
            inner=inner.at(step) if hasattr(inner, "at") else inner,
            weight=self.objective.weight * share,
        )

    def __call__(
        self, net: nn.Module, batch: Batch, keys: Keys, level: Tensor | None = None
    ) -> Loss:
        loss = self.inner(net, batch, keys, level)
        unrest = torch.stack([layer.unrest() for layer in aware_layers(net).values()]).sum()
        logs = {**loss.logs, "unrest": unrest.detach().expand(len(loss.per_sample))}
        if level is not None:
            return replace(loss, logs=logs)
        return replace(loss, per_sample=loss.per_sample + self.weight * unrest, logs=logs)

    def __getattr__(self, name: str) -> Any:
        if name in ("learn", "players"):  # what only some objectives have
            return getattr(self.inner, name)
        raise AttributeError(name)
