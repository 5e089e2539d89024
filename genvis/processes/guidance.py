"""Guidance, as denoisers that wrap denoisers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from genvis.types import Cond, Denoise, Estimate, Process


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance: unconditional + scale (conditional - unconditional).

    Source: Ho and Salimans 2022, "Classifier-Free Diffusion Guidance", eq. 6, with scale = 1 + w.
    `channels` guides only the first ones and leaves the rest conditional: the published DiT and SiT
    samples were made with channels=3. Estimates are linear in the network's output, so guiding them
    is guiding it, in any parametrisation.
    """

    denoise: Denoise
    scale: float
    channels: int | None = None

    @property
    def process(self) -> Process:
        return self.denoise.process

    @property
    def evaluations(self) -> int:
        return 2 * self.denoise.evaluations

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Estimate:
        given = self.denoise(x, t, cond)
        free = self.denoise(x, t, cond.dropped())
        x0, eps = self._guide(given.x0, free.x0), self._guide(given.eps, free.eps)
        return Estimate(x0, eps, given.var)

    def _guide(self, given: Tensor, free: Tensor) -> Tensor:
        guided = torch.lerp(free, given, self.scale)
        if self.channels is None:
            return guided
        return torch.cat([guided[:, : self.channels], given[:, self.channels :]], dim=1)
