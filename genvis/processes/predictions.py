"""What a network is asked for, as a row of one 2x2 system.

With out = p x0 + q eps and x_t = alpha x0 + sigma eps, every parametrisation converts to every
other by solving for (x0, eps): a new one is one `row`, and losses use the same row for the target.
Sources: Ho et al. 2020 (noise); Salimans and Ho 2022, "Progressive Distillation", section 4 and
appendix D (v, clean); Lipman et al. 2023 (velocity); Song et al. 2021 (score); Karras et al. 2022,
section 5 (EDM).
Letters: s = sigma / alpha, the noise level of x_t / alpha.
"""

import torch
from torch import Tensor

from genvis.config import config
from genvis.types import Process


@config
class _Plain:
    """The network sees x_t as it is and the time as `time_scale` times its share of the path.

    The share is t itself where t is in [0, 1] and index / N for a table of N betas.
    """

    time_scale: float = 1000.0
    time_offset: float = 0.0  # 1 for U-ViT and DiMR, which count the 1,000 steps from 1
    learned_variance: bool = False  # the second half of the channels is a raw variance (DiT)

    def inputs(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.time_scale * process.share(t) + self.time_offset

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


@config
class Score(_Plain):
    """-eps / sigma, the gradient of log p(x_t). Neither alpha nor sigma may be 0."""

    def row(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
        _, sigma = process.coeffs(t)
        return torch.zeros_like(t), -1 / sigma


@config
class SiTVelocity(_Plain):
    """The velocity of published SiT weights, whose time runs from noise (0) to data (1)."""

    time_scale: float = 1.0

    def row(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
        d_alpha, d_sigma = process.rates(t)
        return -d_alpha, -d_sigma

    def inputs(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.time_scale * (1 - process.share(t)) + self.time_offset


@config
class EDM:
    """F in x0 = c_skip x_t / alpha + c_out F(c_in x_t / alpha, ln(s) / 4): unit-variance inputs and
    targets for data of standard deviation sigma_data.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if self.sigma_data <= 0:
            raise ValueError(f"sigma_data must be positive, got {self.sigma_data}")

    def row(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
        s, total = self._levels(process, t)
        c_skip, c_out = self.sigma_data**2 / total, s * self.sigma_data / total.sqrt()
        return (1 - c_skip) / c_out, -c_skip * s / c_out

    def inputs(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
        s, total = self._levels(process, t)
        return 1 / (total.sqrt() * process.coeffs(t)[0]), s.log() / 4

    def split(self, out: Tensor) -> tuple[Tensor, Tensor | None]:
        return out, None

    def _levels(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = process.coeffs(t)
        s = sigma / alpha
        return s, s**2 + self.sigma_data**2
