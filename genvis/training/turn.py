"""One player's step: forward and backward over the step's micro-batches, then its optimizer.

Most trainings have one player, the model. Adversarial ones have more; within a step they move in
turn, each on the same batches.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from genvis.random import HashKeys
from genvis.training.optim import Optim
from genvis.types import Batch, LossFunction


@dataclass(frozen=True)
class Seat:
    """A player's network as accelerate prepared it, its loss, its optimizer and its schedule."""

    net: nn.Module
    loss: LossFunction
    optimizer: Any
    optim: Optim

    def turn(
        self,
        accelerator: Accelerator,
        batches: Sequence[tuple[Batch, HashKeys]],
        step: int,
        steps: int,
        keys: HashKeys,
    ) -> Tensor:
        """Move once; (2,): the loss over all processes, and the gradient norm before clipping.

        keys: one row, for what the network learns without gradients.
        """
        at = getattr(self.loss, "at", None)
        loss_function: Any = self.loss if at is None else at(step)
        self.optim.set(self.optimizer, step, steps)
        total, features = torch.zeros((), device=accelerator.device), []
        for batch, own in batches:
            with accelerator.accumulate(self.net), accelerator.autocast():
                loss = loss_function(self.net, batch, own)
                mean = loss.per_sample.mean()
                accelerator.backward(mean)
                norm = self._clip(accelerator)
                self.optimizer.step()
                self.optimizer.zero_grad()
            total += mean.detach() / len(batches)
            features.append(loss.features)
        if hasattr(loss_function, "learn") and features[0] is not None:
            seen = torch.cat([accelerator.gather(part) for part in features])
            loss_function.learn(accelerator.unwrap_model(self.net), seen, keys)
        return torch.stack([accelerator.reduce(total, "mean"), norm])

    def _clip(self, accelerator: Accelerator) -> Tensor:
        """The gradient norm; a constant while gradients are still being accumulated."""
        if not accelerator.sync_gradients:
            return torch.zeros((), device=accelerator.device)
        most = math.inf if self.optim.clip is None else self.optim.clip
        return accelerator.clip_grad_norm_(self.net.parameters(), most).detach()
