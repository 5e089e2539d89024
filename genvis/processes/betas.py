"""The discrete diffusion process of DDPM: a table of betas, whose indices are the times.

Sources: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", section 4 (linear); Nichol and
Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", eq. 17 (cosine); Rombach et al.
2022, "High-Resolution Image Synthesis with Latent Diffusion Models", released code (scaled_linear).
Letters: N betas; index -1 is clean, N - 1 the noise end.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genvis.config import config

Ends = tuple[float, float]


def _linear(n: int, ends: Ends | None) -> Tensor:
    first, last = ends or (0.1 / n, 20 / n)  # DDPM's at N = 1000
    return torch.linspace(first, last, n, dtype=torch.float64)


def _scaled_linear(n: int, ends: Ends | None) -> Tensor:
    first, last = ends or (0.00085, 0.012)
    return torch.linspace(math.sqrt(first), math.sqrt(last), n, dtype=torch.float64) ** 2


def _cosine(n: int, ends: Ends | None) -> Tensor:
    grid = torch.arange(n + 1, dtype=torch.float64) / n
    bars = ((grid + 0.008) / 1.008 * math.pi / 2).cos() ** 2
    return (1 - bars[1:] / bars[:-1]).clamp(max=0.999)


SCHEDULES: dict[str, Callable[[int, Ends | None], Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "cosine": _cosine,
}


@cache
def _log_alpha_bars(schedule: str, n: int, ends: Ends | None) -> Tensor:
    """log alpha_bar at the indices -1, 0, ..., N - 1: (N + 1,) float64."""
    return F.pad(torch.log1p(-SCHEDULES[schedule](n, ends)).cumsum(0), (1, 0))


@config
class Betas:
    """alpha_t^2 = prod_{i <= t} (1 - beta_i), sigma_t^2 = 1 - alpha_t^2.

    Between indices log alpha^2 is interpolated, which is the continuous process with a beta that is
    constant from one index to the next. Respacing is a time grid.
    """

    schedule: Literal["linear", "cosine", "scaled_linear"] = "linear"
    count: int = 1000
    # the first and last beta; default: 0.1 / N and 20 / N, or for scaled_linear 0.00085 and 0.012
    ends: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.ends is not None:
            if self.schedule == "cosine":
                raise ValueError("ends belong to the linear schedules; 'cosine' has none")
            if not 0 < self.ends[0] < self.ends[1] < 1:
                raise ValueError(f"ends must be 0 < first < last < 1, got {self.ends}")
        least = 21 if self.schedule == "linear" and self.ends is None else 2  # 20 / N is below 1
        if self.count < least:
            raise ValueError(f"count must be at least {least}, got {self.count}")

    @property
    def times(self) -> tuple[float, float]:
        return -1.0, self.count - 1.0

    def at(self, u: Tensor) -> Tensor:
        return (u * self.count).floor().clamp(max=self.count - 1)

    def share(self, t: Tensor) -> Tensor:
        return (t / self.count).clamp(min=0)

    def coeffs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        table, u = self._table(t)
        above = u.ceil().clamp(min=1).long()
        log_alpha_2 = torch.lerp(table[above - 1], table[above], u - (above - 1))
        pair = (log_alpha_2 / 2).exp(), (-torch.expm1(log_alpha_2)).sqrt()
        return (pair[0].to(t.dtype), pair[1].to(t.dtype)) if t.is_floating_point() else pair

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """At an index, where the slope jumps, the mean of both sides."""
        table, u = self._table(t)
        ends = u.ceil().clamp(min=1).long(), (u.floor() + 1).clamp(max=self.count).long()
        alpha, sigma = self.coeffs(t)
        steps = torch.stack([table[end] - table[end - 1] for end in ends])
        slope = steps.mean(0).to(alpha.dtype)
        return alpha * slope / 2, -(alpha**2) * slope / (2 * sigma)

    def time(self, log_snr: Tensor) -> Tensor:
        table = _log_alpha_bars(self.schedule, self.count, self.ends).to(log_snr.device)
        log_alpha_2 = F.logsigmoid(log_snr.double())
        above = torch.searchsorted(-table, -log_alpha_2).clamp(1, self.count)
        fraction = (log_alpha_2 - table[above - 1]) / (table[above] - table[above - 1])
        return (above - 2 + fraction.clamp(0, 1)).to(log_snr.dtype)

    def _table(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """log alpha^2 at indices -1, ..., N - 1, and where t lies in it, both float64."""
        table = _log_alpha_bars(self.schedule, self.count, self.ends).to(t.device)
        return table, (t.double() + 1).clamp(0, self.count)
