"""The same network on another path.

Source: Karras et al. 2022, section 3 and appendix B: any two Gaussian paths agree, up to a scale of
x, at points of equal signal-to-noise ratio.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from genvis.processes.denoiser import like
from genvis.types import Cond, Denoise, Estimate, Process


@dataclass(frozen=True)
class Along:
    """`denoise`, trained along its own process, as an estimate along `process`.

    Its estimates of x0 and eps hold on both: x at t is rescaled to where the network's own path has
    the same alpha / sigma. Beyond the ends of that path its last time is used.
    """

    denoise: Denoise
    process: Process

    def evaluations(self, t: Tensor) -> int:
        return self.denoise.evaluations(self._own_time(t))

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Estimate:
        own = self._own_time(t)
        here = torch.hypot(*self.process.coeffs(t))
        there = torch.hypot(*self.denoise.process.coeffs(own))
        return self.denoise(x * like(there / here, x), own, cond)

    def _own_time(self, t: Tensor) -> Tensor:
        own = self.denoise.process
        ends = torch.tensor(own.times, dtype=torch.float64, device=t.device)
        most, least = log_snr(own, ends).to(t.dtype if t.is_floating_point() else ends.dtype)
        level = log_snr(self.process, t)
        time = own.time(level.clamp(least, most))
        time = torch.where(level >= most, ends[0], torch.where(level <= least, ends[1], time))
        return time.to(level.dtype)


def log_snr(process: Process, t: Tensor) -> Tensor:
    alpha, sigma = process.coeffs(t)
    return 2 * (alpha.log() - sigma.log())
