"""What an error counts at time t: factors (B,) on the squared error of the network's output.

At a given x_t an error e of x0 is an error -(alpha / sigma) e of eps, so one of (p - q alpha /
sigma) e of the output p x0 + q eps: weights that papers state for one parametrisation hold for all.
"""

from typing import Annotated, Protocol

import torch
from torch import Tensor

from genvis.config import config
from genvis.processes import PREDICTIONS
from genvis.processes.predictions import Noise
from genvis.types import Prediction, Process


class Weight(Protocol):
    def __call__(self, process: Process, prediction: Prediction, t: Tensor) -> Tensor: ...


@config
class Constant:
    """The squared error of the output itself: EDM's weight for EDM's prediction."""

    def __call__(self, process: Process, prediction: Prediction, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@config
class InTermsOf:
    """As if another prediction had been regressed: `noise` is DDPM's simple loss, `velocity` SiT's
    and flow matching's, `edm` EDM's.
    """

    prediction: Annotated[Prediction, PREDICTIONS] = Noise()

    def __call__(self, process: Process, prediction: Prediction, t: Tensor) -> Tensor:
        other, own = (_per_x0(process, p, t) for p in (self.prediction, prediction))
        return (other / own) ** 2


@config
class MinSNR:
    """min(SNR, gamma) on the error of x0.

    Source: Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", eq. 8.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if self.gamma <= 0:
            raise ValueError(f"gamma must be positive, got {self.gamma}")

    def __call__(self, process: Process, prediction: Prediction, t: Tensor) -> Tensor:
        alpha, sigma = process.coeffs(t)
        capped = torch.minimum(alpha**2, self.gamma * sigma**2)
        return capped / _per_x0(process, prediction, t) ** 2


@config
class Likelihood:
    """w / sigma^2 on the error of eps, w the diffusion of the process's own reverse SDE.

    Source: Song et al. 2021, "Maximum Likelihood Training of Score-Based Diffusion Models", eq. 7;
    Ma et al. 2024, "SiT", released code.
    """

    def __call__(self, process: Process, prediction: Prediction, t: Tensor) -> Tensor:
        (alpha, sigma), (d_alpha, d_sigma) = process.coeffs(t), process.rates(t)
        w = sigma * d_sigma - sigma**2 * d_alpha / alpha
        own = _per_x0(process, prediction, t)
        return w / sigma**2 * (_per_x0(process, Noise(), t) / own) ** 2


def _per_x0(process: Process, prediction: Prediction, t: Tensor) -> Tensor:
    """sigma |error of the output| / |error of x0|, which is finite at sigma = 0 too."""
    (p, q), (alpha, sigma) = prediction.row(process, t), process.coeffs(t)
    return (p * sigma - q * alpha).abs()
