"""Where on the path training looks: from uniforms (B,) in [0, 1) to times of a process."""

from typing import Annotated, Protocol

import torch
from torch import Tensor

from genvis.config import config
from genvis.objectives import TIMES
from genvis.types import Process


class TimeSampler(Protocol):
    def __call__(self, process: Process, u: Tensor) -> Tensor: ...


@config
class Uniform:
    """Evenly along the path: every index of a table alike, in log sigma for VE."""

    def __call__(self, process: Process, u: Tensor) -> Tensor:
        return process.at(u)


@config
class LogitNormal:
    """sigmoid(mean + std z) of the path. Esser et al. 2024, "Scaling Rectified Flow Transformers",
    section 3.1.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"std must be positive, got {self.std}")

    def __call__(self, process: Process, u: Tensor) -> Tensor:
        return process.at(torch.sigmoid(self.mean + self.std * normal(u)))


@config
class LogNormal:
    """sigma / alpha = exp(mean + std z). Karras et al. 2022, table 1: -1.2 and 1.2 for EDM."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"std must be positive, got {self.std}")

    def __call__(self, process: Process, u: Tensor) -> Tensor:
        """The density is cut off, and renormalised, at the ends of the path."""
        alpha, sigma = process.coeffs(process.at(torch.tensor([0.0, 1.0], dtype=torch.float64)))
        ends = ((sigma / alpha).log() - self.mean) / self.std
        low, high = torch.special.ndtr(ends).tolist()
        return process.time(-2 * (self.mean + self.std * normal(low + (high - low) * u)))


@config
class Shifted:
    """Another sampler's shares u of the path moved to shift u / (1 + (shift - 1) u): more noise for
    larger images.

    Source: Esser et al. 2024, section 5.3.2; `samplers.grids.Shifted` is its twin at sampling.
    """

    shift: float = 3.0
    times: Annotated[TimeSampler, TIMES] = Uniform()

    def __post_init__(self) -> None:
        if self.shift <= 0:
            raise ValueError(f"shift must be positive, got {self.shift}")

    def __call__(self, process: Process, u: Tensor) -> Tensor:
        share = process.share(self.times(process, u))
        clean, noise = process.share(torch.tensor(process.times, dtype=torch.float64)).tolist()
        v = (share - clean) / (noise - clean)
        return process.at(self.shift * v / (1 + (self.shift - 1) * v))


def normal(u: Tensor) -> Tensor:
    """Standard normals from uniforms."""
    return torch.special.ndtri(u.clamp(1e-7, 1 - 1e-7))
