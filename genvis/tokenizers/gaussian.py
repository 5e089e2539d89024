"""The diagonal Gaussian that a variational encoder gives, as users of diffusers know it.

Source: Kingma and Welling 2014, "Auto-Encoding Variational Bayes", appendix B; names and sums as in
its `DiagonalGaussianDistribution`. Letters: B rows, C channels; sums are over all axes but rows.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genvis.random import Keys
from genvis.types import Moments

LOG_VARIANCE = (-30.0, 20.0)  # clamped to this range


@dataclass(frozen=True)
class DiagonalGaussian:
    """mean and logvar (B, C, ...); a deterministic one has no spread."""

    mean: Tensor
    logvar: Tensor
    deterministic: bool = False

    @classmethod
    def of(cls, parameters: Tensor, deterministic: bool = False) -> "DiagonalGaussian":
        """From (B, 2 C, ...): means, then log-variances."""
        mean, logvar = parameters.chunk(2, dim=1)
        return cls(mean, logvar.clamp(*LOG_VARIANCE), deterministic)

    @property
    def var(self) -> Tensor:
        return torch.zeros_like(self.mean) if self.deterministic else self.logvar.exp()

    @property
    def std(self) -> Tensor:
        return torch.zeros_like(self.mean) if self.deterministic else (self.logvar / 2).exp()

    @property
    def moments(self) -> Moments:
        return Moments(self.mean, None if self.deterministic else self.std)

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, keys: Keys) -> Tensor:
        return self.moments.sample(keys)

    def kl(self, other: "DiagonalGaussian | None" = None) -> Tensor:
        """From `other`, or from the standard normal: (B,) in nats; (1,) zero if deterministic."""
        if self.deterministic:
            return self.mean.new_zeros(1)
        if other is None:
            terms = self.mean.square() + self.var - 1 - self.logvar
        else:
            distance = (self.mean - other.mean).square() / other.var
            terms = distance + self.var / other.var - 1 - self.logvar + other.logvar
        return terms.flatten(1).sum(1) / 2

    def nll(self, sample: Tensor) -> Tensor:
        """-log density of `sample`: (B,) in nats; (1,) zero if deterministic."""
        if self.deterministic:
            return self.mean.new_zeros(1)
        terms = math.log(2 * math.pi) + self.logvar + (sample - self.mean).square() / self.var
        return terms.flatten(1).sum(1) / 2
