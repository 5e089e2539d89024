"""FLOPs of every step of a sampler, counted while it makes one image.

Matrix products, convolutions and attention, a multiply-add as two; what works element by element
(norms, scans in plain torch, the solver) is left out, as is decoding, which `Cost` counts apart.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from genvis.random import HashKeys
from genvis.types import Cond, Cost, Sampler, take, to


@dataclass(frozen=True)
class Counted:
    """A sampler whose cost tells FLOPs; all else is the sampler's own."""

    sampler: Sampler
    flops: tuple[int, ...]  # of step k, a row

    def cost(self, k: int) -> Cost:
        return replace(self.sampler.cost(k), flops=self.flops[k])

    def look_cost(self, k: int) -> Cost:
        """The share of step k that a look spends, of FLOPs as of evaluations."""
        whole = self.sampler.cost(k)
        part: Cost = getattr(self.sampler, "look_cost", self.sampler.cost)(k)
        return replace(part, flops=self.flops[k] * part.evaluations // max(1, whole.evaluations))

    def __getattr__(self, name: str) -> Any:
        if name == "sampler":  # not there yet while a copy of this is being made
            raise AttributeError(name)
        return getattr(self.sampler, name)


@torch.no_grad()
def counted(sampler: Sampler, cond: Cond) -> Counted:
    """The sampler with its FLOPs, from one image for the first row of `cond`."""
    keys, flops = HashKeys.of(0, [0]), []
    noise, first = to((keys.normal(sampler.noise_shape), take(cond, slice(1))), sampler.device)
    state = sampler.init(noise, first, keys)
    for _ in range(sampler.num_steps):
        with FlopCounterMode(display=False) as counter:
            state = sampler.step(state)
        flops.append(counter.get_total_flops())
    return Counted(sampler, tuple(flops))
