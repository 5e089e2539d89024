"""Time grids: where a sampler stops on its way from noise to clean. float64, on the CPU."""

from typing import Protocol

import torch
from torch import Tensor

from genvis.config import config
from genvis.processes.betas import Betas
from genvis.types import Process


class Grid(Protocol):
    def __call__(self, process: Process, steps: int) -> Tensor:
        """steps + 1 falling times, from the noise end (or near it) to the clean end."""
        ...


@config
class Uniform:
    """Equal steps in t. `last` (a share of the path) is the length of the last one, if it is to be
    another: SiT's SDE samplers end with 0.04.
    """

    last: float | None = None

    def __post_init__(self) -> None:
        if self.last is not None and not 0 < self.last < 1:
            raise ValueError(f"last must be in (0, 1), got {self.last}")

    def __call__(self, process: Process, steps: int) -> Tensor:
        if self.last is None or steps == 1:
            return _between(process, torch.linspace(1, 0, steps + 1, dtype=torch.float64))
        u = torch.linspace(1, self.last, steps, dtype=torch.float64)
        return _between(process, torch.cat([u, torch.zeros(1, dtype=torch.float64)]))


@config
class Quadratic:
    """Steps that shrink towards the data: t = noise end * u^2.

    Source: Song, Meng and Ermon 2021, "Denoising Diffusion Implicit Models", appendix D.2.
    """

    def __call__(self, process: Process, steps: int) -> Tensor:
        return _between(process, torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 2)


@config
class Circle:
    """Most steps where there is most noise: u to sqrt(1 - (1 - u)^2).

    Source: Kim et al. 2025, "Inference-Time Scaling for Flow Models via Stochastic Generation and
    Rollover Budget Forcing", section 4.2 and released code.
    """

    def __call__(self, process: Process, steps: int) -> Tensor:
        u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return _between(process, (1 - (1 - u) ** 2).sqrt())


@config
class Shifted:
    """More steps where there is more noise: u to shift u / (1 + (shift - 1) u).

    Source: Esser et al. 2024, "Scaling Rectified Flow Transformers", section 5.3.2, shift =
    sqrt(m / n) for m pixels where the model was tuned for n; 3 for Stable Diffusion 3.
    """

    shift: float = 3.0

    def __post_init__(self) -> None:
        if self.shift <= 0:
            raise ValueError(f"shift must be positive, got {self.shift}")

    def __call__(self, process: Process, steps: int) -> Tensor:
        u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return _between(process, self.shift * u / (1 + (self.shift - 1) * u))


@config
class Karras:
    """sigma / alpha from sigma_max to sigma_min, evenly in its rho-th root, then the clean end.

    Source: Karras et al. 2022, eq. 5.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max or self.rho <= 0:
            raise ValueError(
                "sigma_min, sigma_max and rho must be 0 < sigma_min < sigma_max and rho > 0, got "
                f"{self.sigma_min}, {self.sigma_max} and {self.rho}"
            )

    def __call__(self, process: Process, steps: int) -> Tensor:
        ends = process.at(torch.tensor([0.0, 1.0], dtype=torch.float64))
        alpha, sigma = process.coeffs(ends)
        low, high = (sigma / alpha).tolist()
        if self.sigma_max > high * (1 + 1e-6):
            raise ValueError(
                f"grid.sigma_max must be at most the process's own, {high:.6g}, got "
                f"{self.sigma_max}"
            )
        if self.sigma_min < low * (1 - 1e-6):
            raise ValueError(
                f"grid.sigma_min must be at least the process's own, {low:.6g}, got "
                f"{self.sigma_min}"
            )
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        levels = torch.linspace(high, low, steps, dtype=torch.float64) ** self.rho
        clean = torch.tensor([process.times[0]], dtype=torch.float64)
        return torch.cat([process.time(-2 * levels.log()), clean])


@config
class Respaced:
    """Whole indices of a table of betas, as the released DiT counts them; then the clean end.

    Source: Nichol and Dhariwal 2021, section 4, and released code. sections: how many of the steps
    each of that many equal sections of the table gets, from clean to noise (default: one section).
    stride: equally far apart from index 0 on instead ("ddimK").
    """

    sections: tuple[int, ...] = ()
    stride: bool = False

    def __post_init__(self) -> None:
        if self.stride and self.sections:
            raise ValueError("sections and stride exclude each other")

    def __call__(self, process: Process, steps: int) -> Tensor:
        if not isinstance(process, Betas):
            raise ValueError(f"grid 'respaced' needs process 'betas', got {type(process).__name__}")
        if self.sections and sum(self.sections) != steps:
            raise ValueError(
                f"steps must be the sum of sections, {sum(self.sections)}, got {steps}"
            )
        chosen = self._strided if self.stride else self._sectioned
        indices = chosen(process.count, steps)
        return torch.tensor([*reversed(indices), -1], dtype=torch.float64)

    def _sectioned(self, count: int, steps: int) -> list[int]:
        sections, start, chosen = self.sections or (steps,), 0, []
        for i, wanted in enumerate(sections):
            size = count // len(sections) + (i < count % len(sections))
            if not 1 <= wanted <= size:
                raise ValueError(f"a section of {size} betas cannot give {wanted} steps")
            gap, position = (size - 1) / (wanted - 1) if wanted > 1 else 1.0, 0.0
            for _ in range(wanted):  # added up as released: ties of rounding depend on it
                chosen.append(start + round(position))
                position += gap
            start += size
        return chosen

    def _strided(self, count: int, steps: int) -> list[int]:
        for stride in range(1, count):
            if len(indices := range(0, count, stride)) == steps:
                return list(indices)
        raise ValueError(f"no whole stride makes {steps} steps of {count} betas")


def _between(process: Process, u: Tensor) -> Tensor:
    clean, noise = process.times
    return clean + (noise - clean) * u
