"""Solvers of the probability-flow ODE. They see only (x0, eps), so each serves every process and
prediction.

Letters: x_t = alpha x0 + sigma eps; t where the state is, s < t where it goes.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from genvis.config import config
from genvis.processes.denoiser import like
from genvis.samplers.state import DiffusionState
from genvis.types import Denoise, Estimate, Process


class Solver(Protocol):
    """One step of a trajectory. Its noise comes from `state.keys`, folded with `state.k`."""

    @property
    def stochastic(self) -> bool: ...
    def visits(self, process: Process, t: Tensor, s: Tensor) -> Sequence[Tensor]:
        """The times at which the step from t to s calls the denoiser, the look at t included."""
        ...

    def random_after(self, process: Process, times: Tensor, k: int) -> bool:
        """Whether anything that happens to a state at times[k] is random."""
        ...

    def leave(self, process: Process, state: DiffusionState, s: Tensor) -> DiffusionState:
        """The point from which the step to s starts, before the network looks: where a stochastic
        solver raises the noise. Most start where they are.
        """
        ...

    def move(self, denoise: Denoise, state: DiffusionState, s: Tensor) -> DiffusionState:
        """The state's x at s, with the solver's memory; `state.kept` is the estimate at state.t."""
        ...


@config
class Step:
    """What most solvers share: one look, from where they are, and nothing random."""

    @property
    def stochastic(self) -> bool:
        return False

    def visits(self, process: Process, t: Tensor, s: Tensor) -> Sequence[Tensor]:
        return (t,)

    def random_after(self, process: Process, times: Tensor, k: int) -> bool:
        return self.stochastic and k < len(times) - 2  # a step onto clean data adds no noise

    def leave(self, process: Process, state: DiffusionState, s: Tensor) -> DiffusionState:
        return state


@config
class Euler(Step):
    """x_s = alpha_s x0 + sigma_s eps: DDIM for VP, Euler in sigma for VE, Euler on the velocity for
    linear flow.

    Source: Song, Meng and Ermon 2021, "Denoising Diffusion Implicit Models", eq. 12, sigma_t = 0.
    """

    def move(self, denoise: Denoise, state: DiffusionState, s: Tensor) -> DiffusionState:
        now = kept(state)
        alpha, sigma = (like(c, state.x) for c in denoise.process.coeffs(s))
        return replace(state, x=alpha * now.x0 + sigma * now.eps)


@config
class Heun(Step):
    """Karras et al. 2022, alg. 1, on dx/dt = alpha' x0 + sigma' eps, true along any Gaussian path,
    also at alpha = 0. A step onto sigma = 0 is Euler's.
    """

    def visits(self, process: Process, t: Tensor, s: Tensor) -> Sequence[Tensor]:
        return (t,) if process.coeffs(s)[1] == 0 else (t, s)

    def move(self, denoise: Denoise, state: DiffusionState, s: Tensor) -> DiffusionState:
        process, now = denoise.process, kept(state)
        guess = Euler().move(denoise, state, s).x
        if process.coeffs(s)[1] == 0:
            return replace(state, x=guess)
        then = denoise(guess, s, state.cond)
        slopes = slope(process, now, state.t) + slope(process, then, s)
        return replace(state, x=state.x + like((s - state.t) / 2, state.x) * slopes)


@config
class Midpoint(Step):
    """The explicit midpoint rule on dx/dt = alpha' x0 + sigma' eps; two evaluations a step."""

    def visits(self, process: Process, t: Tensor, s: Tensor) -> Sequence[Tensor]:
        return (t, (t + s) / 2)

    def move(self, denoise: Denoise, state: DiffusionState, s: Tensor) -> DiffusionState:
        process, x, middle = denoise.process, state.x, (state.t + s) / 2
        half = x + like(middle - state.t, x) * slope(process, kept(state), state.t)
        then = denoise(half, middle, state.cond)
        return replace(state, x=x + like(s - state.t, x) * slope(process, then, middle))


@config
class DPMSolverPP2M(Step):
    """DPM-Solver++(2M): second order, one evaluation a step, in log(alpha / sigma).

    Source: Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion
    Probabilistic Models", alg. 2. The memory is the last x0 and the length h of its step.
    """

    def move(self, denoise: Denoise, state: DiffusionState, s: Tensor) -> DiffusionState:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (denoise.process.coeffs(i) for i in (state.t, s))
        x0 = kept(state).x0
        h = (alpha_s / sigma_s).log() - (alpha_t / sigma_t).log()
        mean = x0
        if state.memory is not None and sigma_s > 0:
            last_x0, last_h = state.memory
            mean = x0 + like(h / (2 * last_h), x0) * (x0 - last_x0)
        decay = sigma_s / sigma_t  # alpha_s (1 - e^-h) = alpha_s - alpha_t sigma_s / sigma_t
        x = like(decay, mean) * state.x + like(alpha_s - alpha_t * decay, mean) * mean
        return replace(state, x=x, memory=(x0, h))


def slope(process: Process, estimate: Estimate, t: Tensor) -> Tensor:
    """dx/dt of the probability-flow ODE."""
    d_alpha, d_sigma = (like(c, estimate.x0) for c in process.rates(t))
    return d_alpha * estimate.x0 + d_sigma * estimate.eps


def kept(state: DiffusionState) -> Estimate:
    assert state.kept is not None  # the sampler looks before every move
    return state.kept
