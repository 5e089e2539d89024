"""The straight path from data to noise.

Source: Liu et al. 2023, "Flow Straight and Fast"; Lipman et al. 2023, "Flow Matching for Generative
Modeling", with time running towards noise (t = 1), as in Stable Diffusion 3. SiT's code runs it the
other way.
"""

import torch
from torch import Tensor

from genvis.config import config


@config
class Linear:
    """x_t = (1 - t) x0 + t eps for t in [0, 1]."""

    @property
    def times(self) -> tuple[float, float]:
        return 0.0, 1.0

    def coeffs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)
