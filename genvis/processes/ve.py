"""The variance-exploding path, with the noise's standard deviation as time.

Source: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models".
"""

import math

import torch
from torch import Tensor

from genvis.config import config


@config
class VE:
    """x_t = x0 + t eps for t in [0, sigma_max]; its share of the path is log t, from sigma_min."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"sigma_min and sigma_max must be 0 < sigma_min < sigma_max, got {self.sigma_min} "
                f"and {self.sigma_max}"
            )

    @property
    def times(self) -> tuple[float, float]:
        return 0.0, self.sigma_max

    def at(self, u: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** u

    def share(self, t: Tensor) -> Tensor:
        whole = math.log(self.sigma_max / self.sigma_min)
        return ((t / self.sigma_min).log() / whole).clamp(0, 1)

    def coeffs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.exp(-log_snr / 2)
