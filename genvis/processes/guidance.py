"""Guidance, as denoisers that wrap denoisers.

Estimates are linear in the network's output, so guiding them is guiding it, in any parametrisation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from genvis.processes.denoiser import like, paired
from genvis.types import Cond, Denoise, Estimate, Process

ROUNDING = 1e-9  # a step at 0.1 + 0.2 belongs to an interval that ends at 0.3


@dataclass(frozen=True)
class Guided:
    """reference + scale (denoise - reference).

    Classifier-free guidance where no reference is given, which is then the same network without the
    condition (Ho and Salimans 2022, "Classifier-Free Diffusion Guidance", eq. 6, scale = 1 + w);
    autoguidance where it is a weaker network along the same process (Karras et al. 2024, "Guiding a
    Diffusion Model with a Bad Version of Itself", eq. 6).

    channels: guides only the first ones and leaves the rest conditional: the published DiT and SiT
    samples were made with 3. rescale: how far x0 gets back the standard deviation that it has
    unguided (Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", eqs.
    14 to 16, on x0 instead of the output, so that it means the same for every prediction).
    """

    denoise: Denoise
    scale: float
    channels: int | None = None
    rescale: float = 0.0
    reference: Denoise | None = None

    @property
    def process(self) -> Process:
        return self.denoise.process

    def evaluations(self, t: Tensor) -> int:
        return self.denoise.evaluations(t) + (self.reference or self.denoise).evaluations(t)

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Estimate:
        given = self.denoise(x, t, cond)
        if self.reference is not None:
            other = self.reference(x, t, cond)
        else:
            other = self.denoise(x, t, cond.dropped())
        x0, eps = self._guide(given.x0, other.x0), self._guide(given.eps, other.eps)
        if self.rescale:
            ratio = given.x0.flatten(1).std(1) / x0.flatten(1).std(1)
            x0, eps = paired(self.process, x, x0 * like(1 + self.rescale * (ratio - 1), x), t)
        return Estimate(x0, eps, given.var)

    def _guide(self, given: Tensor, other: Tensor) -> Tensor:
        guided = torch.lerp(other, given, self.scale)
        if self.channels is None:
            return guided
        return torch.cat([guided[:, : self.channels], given[:, self.channels :]], dim=1)


@dataclass(frozen=True)
class Interval:
    """`inside` at shares of the path in [low, high], `outside` elsewhere. t is a scalar.

    Source: Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval Improves Sample and
    Distribution Quality in Diffusion Models", section 3, with `inside` guided and `outside` not.
    """

    inside: Denoise
    outside: Denoise
    interval: tuple[float, float]

    @property
    def process(self) -> Process:
        return self.inside.process

    def evaluations(self, t: Tensor) -> int:
        return self._at(t).evaluations(t)

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Estimate:
        return self._at(t)(x, t, cond)

    def _at(self, t: Tensor) -> Denoise:
        low, high = self.interval
        within = low - ROUNDING <= self.process.share(t) <= high + ROUNDING
        return self.inside if within else self.outside


@dataclass(frozen=True)
class Clipped:
    """x0 kept within [-limit, limit], for pixels; eps is what x_t then leaves for the noise."""

    denoise: Denoise
    limit: float = 1.0

    @property
    def process(self) -> Process:
        return self.denoise.process

    def evaluations(self, t: Tensor) -> int:
        return self.denoise.evaluations(t)

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Estimate:
        found = self.denoise(x, t, cond)
        x0 = found.x0.clamp(-self.limit, self.limit)
        return Estimate(*paired(self.process, x, x0, t), found.var)
