"""Solvers of the probability-flow ODE. They see only (x0, eps), so each serves every process and
prediction.

Letters: x_t = alpha x0 + sigma eps; t where the state is, s < t where it goes.
"""

from dataclasses import replace
from typing import Protocol

from torch import Tensor

from genvis.config import config
from genvis.processes.denoiser import like
from genvis.samplers.state import DiffusionState
from genvis.types import Denoise, Estimate, Process


class Solver(Protocol):
    """One step of a trajectory. Noise comes from `state.keys.fold("step", state.k)`."""

    @property
    def stochastic(self) -> bool: ...
    def calls(self, process: Process, s: Tensor) -> int:
        """How often the step to s calls the denoiser."""
        ...

    def move(self, denoise: Denoise, state: DiffusionState, t: Tensor, s: Tensor) -> DiffusionState:
        """The state at s, with the solver's memory; `state.kept` is the estimate at t."""
        ...


@config
class Euler:
    """x_s = alpha_s x0 + sigma_s eps: DDIM for VP, Euler in sigma for VE, Euler on the velocity for
    linear flow.

    Source: Song, Meng and Ermon 2021, "Denoising Diffusion Implicit Models", eq. 12, sigma_t = 0.
    """

    @property
    def stochastic(self) -> bool:
        return False

    def calls(self, process: Process, s: Tensor) -> int:
        return 1

    def move(self, denoise: Denoise, state: DiffusionState, t: Tensor, s: Tensor) -> DiffusionState:
        now = _kept(state)
        alpha, sigma = (like(c, state.x) for c in denoise.process.coeffs(s))
        return replace(state, x=alpha * now.x0 + sigma * now.eps)


@config
class Heun:
    """Karras et al. 2022, alg. 1, on dx/dt = alpha' x0 + sigma' eps, true along any Gaussian path,
    also at alpha = 0. A step onto sigma = 0 is Euler's.
    """

    @property
    def stochastic(self) -> bool:
        return False

    def calls(self, process: Process, s: Tensor) -> int:
        return 1 if process.coeffs(s)[1] == 0 else 2

    def move(self, denoise: Denoise, state: DiffusionState, t: Tensor, s: Tensor) -> DiffusionState:
        guess = Euler().move(denoise, state, t, s)
        if denoise.process.coeffs(s)[1] == 0:
            return guess
        then = denoise(guess.x, s, state.cond)
        slopes = _slope(denoise, _kept(state), t, state.x) + _slope(denoise, then, s, state.x)
        return replace(state, x=state.x + like((s - t) / 2, state.x) * slopes)


def _slope(denoise: Denoise, estimate: Estimate, t: Tensor, x: Tensor) -> Tensor:
    d_alpha, d_sigma = (like(c, x) for c in denoise.process.rates(t))
    return d_alpha * estimate.x0 + d_sigma * estimate.eps


def _kept(state: DiffusionState) -> Estimate:
    assert state.kept is not None  # the sampler looks before every move
    return state.kept
