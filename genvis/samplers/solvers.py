"""Solvers of the probability-flow ODE. They see only (x0, eps), so each serves every process and
prediction.

Letters: x_t = alpha x0 + sigma eps; t where the state is, s < t where it goes.
"""

from typing import Protocol

from torch import Tensor

from genvis.config import config
from genvis.processes.denoiser import like
from genvis.types import Cond, Denoise, Estimate


class Solver(Protocol):
    def calls(self, last: bool) -> int:
        """Calls of the denoiser that one step makes; `last` is the step onto the clean end."""
        ...

    def move(
        self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, now: Estimate, cond: Cond
    ) -> Tensor:
        """x at s from x at t, where `now` is the estimate."""
        ...


@config
class Euler:
    """x_s = alpha_s x0 + sigma_s eps: DDIM for VP, Euler in sigma for VE, Euler on the velocity for
    linear flow.

    Source: Song, Meng and Ermon 2021, "Denoising Diffusion Implicit Models", eq. 12 with sigma_t =
    0.
    """

    def calls(self, last: bool) -> int:
        return 1

    def move(
        self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, now: Estimate, cond: Cond
    ) -> Tensor:
        alpha, sigma = (like(c, x) for c in denoise.process.coeffs(s))
        return alpha * now.x0 + sigma * now.eps


@config
class Heun:
    """Karras et al. 2022, alg. 1, on dx/dt = alpha' x0 + sigma' eps, true along any Gaussian path,
    also at alpha = 0.

    The last step, onto sigma = 0, is Euler's.
    """

    def calls(self, last: bool) -> int:
        return 1 if last else 2

    def move(
        self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, now: Estimate, cond: Cond
    ) -> Tensor:
        guess = Euler().move(denoise, x, t, s, now, cond)
        if denoise.process.coeffs(s)[1] == 0:
            return guess
        then = denoise(guess, s, cond)
        slopes = _slope(denoise, now, t, x) + _slope(denoise, then, s, x)
        return x + like((s - t) / 2, x) * slopes


def _slope(denoise: Denoise, estimate: Estimate, t: Tensor, x: Tensor) -> Tensor:
    d_alpha, d_sigma = (like(c, x) for c in denoise.process.rates(t))
    return d_alpha * estimate.x0 + d_sigma * estimate.eps
