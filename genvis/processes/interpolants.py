"""Paths from data to noise over t in [0, 1].

Sources: Liu et al. 2023, "Flow Straight and Fast" and Lipman et al. 2023, "Flow Matching for
Generative Modeling" (Linear); Ma et al. 2024, "SiT", section 2.3 (GVP); Song et al. 2021,
"Score-Based Generative Modeling through SDEs", appendix B (VP); Kim et al. 2025, "Inference-Time
Scaling for Flow Models", released code (Polynomial, LinearVP). Time runs towards noise, as in
Stable Diffusion 3; SiT's code runs it the other way.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from genvis.config import config


@config
class _Unit:
    """`ends` narrows the path where a prediction or a diffusion coefficient is singular."""

    ends: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not 0 <= self.ends[0] < self.ends[1] <= 1:
            raise ValueError(
                f"ends must be (clean, noise) with 0 <= clean < noise <= 1: {self.ends}"
            )

    @property
    def times(self) -> tuple[float, float]:
        return self.ends

    def at(self, u: Tensor) -> Tensor:
        clean, noise = self.ends
        return clean + (noise - clean) * u

    def share(self, t: Tensor) -> Tensor:
        return t


@config
class Linear(_Unit):
    """x_t = (1 - t) x0 + t eps: the straight path."""

    def coeffs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)


@config
class GVP(_Unit):
    """x_t = cos(pi t / 2) x0 + sin(pi t / 2) eps: variance-preserving at constant speed."""

    def coeffs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = t * (math.pi / 2)
        return angle.cos(), angle.sin()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = t * (math.pi / 2)
        return -angle.sin() * (math.pi / 2), angle.cos() * (math.pi / 2)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.atan(torch.exp(-log_snr / 2)) * (2 / math.pi)


@config
class VP(_Unit):
    """The variance-preserving SDE: log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta_min < self.beta_max:
            raise ValueError(
                f"beta_min and beta_max must be 0 < beta_min < beta_max, got {self.beta_min} and "
                f"{self.beta_max}"
            )

    def coeffs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = -(t**2) * (self.beta_max - self.beta_min) / 4 - t * self.beta_min / 2
        return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.coeffs(t)
        d_log_alpha = -t * (self.beta_max - self.beta_min) / 2 - self.beta_min / 2
        return alpha * d_log_alpha, -(alpha**2) * d_log_alpha / sigma

    def time(self, log_snr: Tensor) -> Tensor:
        log_alpha_2 = F.logsigmoid(
            log_snr
        )  # the positive root of a quadratic, free of cancellation
        slope = self.beta_max - self.beta_min
        root = (self.beta_min**2 - 2 * slope * log_alpha_2).sqrt()
        t = -2 * log_alpha_2 / (self.beta_min + root)
        return t.where(log_alpha_2.isfinite(), -log_alpha_2)  # no signal: infinitely late


@config
class LinearVP(_Unit):
    """x_t = sqrt(1 - t^2) x0 + t eps: variance-preserving, with noise that grows as time does."""

    def coeffs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return (1 - t**2).sqrt(), t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -t / (1 - t**2).sqrt(), torch.ones_like(t)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr).sqrt()


@config
class Polynomial(_Unit):
    """x_t = (1 - t)^n x0 + (1 - (1 - t)^n) eps."""

    exponent: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exponent < 1:
            raise ValueError(f"exponent must be at least 1, got {self.exponent}")

    def coeffs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = (1 - t) ** self.exponent
        return alpha, 1 - alpha

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        falling = self.exponent * (1 - t) ** (self.exponent - 1)
        return -falling, falling

    def time(self, log_snr: Tensor) -> Tensor:
        return 1 - torch.sigmoid(log_snr / 2) ** (1 / self.exponent)
