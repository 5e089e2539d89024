"""What a network is asked for, as a row of one 2x2 system.

With out = p x0 + q eps and x_t = alpha x0 + sigma eps, every parametrisation converts to every
other by solving for (x0, eps): a new one is one `row`, and losses use the same row for the target.
Sources: Ho et al. 2020 (noise); Salimans and Ho 2022, "Progressive Distillation", section 4 and
appendix D (v, clean); Lipman et al. 2023 (velocity).
"""

import torch
from torch import Tensor

from genvis.config import config
from genvis.types import Process


@config
class _Plain:
    """The network sees x_t as it is and the time multiplied by `time_scale`."""

    time_scale: float = 1000.0
    learned_variance: bool = False  # the second half of the channels is a raw variance (DiT)

    def inputs(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.time_scale * t

    def split(self, out: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.learned_variance:
            return out, None
        mean, var = out.chunk(2, dim=1)
        return mean, var


@config
class Noise(_Plain):
    """eps itself. Cannot be inverted where alpha = 0."""

    def row(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)


@config
class Clean(_Plain):
    """x0 itself. Cannot be inverted where sigma = 0."""

    def row(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.zeros_like(t)


@config
class V(_Plain):
    """alpha eps - sigma x0."""

    def row(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = process.coeffs(t)
        return -sigma, alpha


@config
class Velocity(_Plain):
    """dx/dt = alpha' x0 + sigma' eps."""

    def row(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
        return process.rates(t)
