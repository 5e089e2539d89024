"""Solvers that draw noise on the way.

Letters: x_t = alpha x0 + sigma eps; t where the state is, s < t where it goes; z standard normal;
w the diffusion coefficient (`diffusions.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from genvis.config import config
from genvis.processes.denoiser import like
from genvis.processes.posterior import Posterior
from genvis.samplers import DIFFUSIONS
from genvis.samplers.diffusions import Diffusion, Sigma
from genvis.samplers.solvers import Heun, Step, kept, slope
from genvis.samplers.state import DiffusionState
from genvis.types import Denoise, Estimate, Process

NONE = torch.zeros((), dtype=torch.float64)


@config
class Stochastic(Step):
    @property
    def stochastic(self) -> bool:
        return True


@config
class DDIM(Step):
    """DDIM with a share `eta` of the posterior's noise: 0 is Euler, 1 is ancestral.

    Source: Song, Meng and Ermon 2021, "Denoising Diffusion Implicit Models", eqs. 12 and 16.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {self.eta}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def transition(
        self, process: Process, state: DiffusionState, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(mean, std) of x at s."""
        now, (alpha, sigma) = kept(state), process.coeffs(s)
        variance = self.eta**2 * Posterior.of(process, state.t, s).small
        still = (sigma**2 - variance).clamp(min=0).sqrt()
        return like(alpha, state.x) * now.x0 + like(still, state.x) * now.eps, variance.sqrt()

    def move(self, denoise: Denoise, state: DiffusionState, s: Tensor) -> DiffusionState:
        return drawn(state, *self.transition(denoise.process, state, s))


@config
class Ancestral(Stochastic):
    """A draw from q(x_s | x_t, x0) at the estimated x0; the step onto clean data is its mean.

    Source: Ho et al. 2020, alg. 2. variance: the posterior's own (small), that of q(x_t | x_s)
    (large), or the network's (learned), which needs a network that predicts it.
    """

    variance: Literal["small", "large", "learned"] = "small"

    def transition(
        self, process: Process, state: DiffusionState, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(mean, std) of x at s; std is shaped like x where it is learned."""
        now, posterior = kept(state), Posterior.of(process, state.t, s)
        mean = posterior.mean(state.x, now.x0)
        if posterior.small == 0:
            return mean, NONE
        if self.variance == "learned":
            if now.var is None:
                raise ValueError("variance 'learned' needs a prediction with learned_variance")
            return mean, (posterior.learned(now.var) / 2).exp()
        return mean, getattr(posterior, self.variance).sqrt()

    def move(self, denoise: Denoise, state: DiffusionState, s: Tensor) -> DiffusionState:
        return drawn(state, *self.transition(denoise.process, state, s))


@config
class EulerMaruyama(Stochastic):
    """dx = (velocity - w score) dt + sqrt(2 w) dW by Euler-Maruyama.

    Source: Ma et al. 2024, "SiT", section 2.4 and appendix A, and released code. last: the step
    onto the clean end, which adds no noise: the drift alone (mean), the ODE's (euler), the
    estimate of x0 (tweedie); or a step like any other (noisy).
    """

    diffusion: Annotated[Diffusion, DIFFUSIONS] = Sigma()
    last: Literal["mean", "euler", "tweedie", "noisy"] = "mean"

    def random_after(self, process: Process, times: Tensor, k: int) -> bool:
        return k < len(times) - (1 if self.last == "noisy" else 2)

    def transition(
        self, process: Process, state: DiffusionState, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(mean, std) of x at s."""
        x, now, dt = state.x, kept(state), state.t - s
        final = s == process.times[0]
        if final and self.last == "tweedie":
            return now.x0, NONE
        if final and self.last == "euler":
            return x - like(dt, x) * slope(process, now, state.t), NONE
        w = coefficient(self.diffusion, process, state.t)
        mean = x - like(dt, x) * drift(process, now, state.t, w)
        return mean, NONE if final and self.last == "mean" else (2 * w * dt).sqrt()

    def move(self, denoise: Denoise, state: DiffusionState, s: Tensor) -> DiffusionState:
        return drawn(state, *self.transition(denoise.process, state, s))


@config
class StochasticHeun(Stochastic):
    """Noise first, then Heun on the drift of the same SDE; the last step is the drift alone.

    Source: Ma et al. 2024, "SiT", released code.
    """

    diffusion: Annotated[Diffusion, DIFFUSIONS] = Sigma()

    def visits(self, process: Process, t: Tensor, s: Tensor) -> Sequence[Tensor]:
        return (t,) if s == process.times[0] else (t, s)

    def random_after(self, process: Process, times: Tensor, k: int) -> bool:
        return k < len(times) - 3  # the noise of the step from times[k] is drawn already

    def leave(self, process: Process, state: DiffusionState, s: Tensor) -> DiffusionState:
        if s == process.times[0]:
            return state
        w = coefficient(self.diffusion, process, state.t)
        return drawn(state, state.x, (2 * w * (state.t - s)).sqrt(), "leave")

    def move(self, denoise: Denoise, state: DiffusionState, s: Tensor) -> DiffusionState:
        process, x, dt = denoise.process, state.x, like(state.t - s, state.x)
        w = coefficient(self.diffusion, process, state.t)
        first = drift(process, kept(state), state.t, w)
        if s == process.times[0]:
            return replace(state, x=x - dt * first)
        then = denoise(x - dt * first, s, state.cond)
        second = drift(process, then, s, coefficient(self.diffusion, process, s))
        return replace(state, x=x - dt / 2 * (first + second))


@config
class ChurnedHeun(Stochastic):
    """Karras et al. 2022, alg. 2: every step starts by raising the noise by a share `churn`.

    churn is the paper's gamma, min(S_churn / N, sqrt(2) - 1); levels = (S_min, S_max), in
    sigma / alpha, is where the noise is raised; inflation is S_noise.
    """

    churn: float = math.sqrt(2) - 1
    levels: tuple[float, float] = (0.05, 50.0)
    inflation: float = 1.003

    def __post_init__(self) -> None:
        if not 0 < self.churn <= math.sqrt(2) - 1:
            raise ValueError(f"churn must be in (0, sqrt(2) - 1], got {self.churn}")
        if not 0 <= self.levels[0] < self.levels[1]:
            raise ValueError(f"levels must be (low, high), 0 <= low < high, got {self.levels}")

    def visits(self, process: Process, t: Tensor, s: Tensor) -> Sequence[Tensor]:
        return (self._raised(process, t), *Heun().visits(process, t, s)[1:])

    def random_after(self, process: Process, times: Tensor, k: int) -> bool:
        return any(self._raised(process, t) != t for t in times[k + 1 : -1])

    def _raised(self, process: Process, t: Tensor) -> Tensor:
        """The time up to which the noise of a state at t is raised."""
        alpha, sigma = process.coeffs(t)
        if not self.levels[0] * alpha <= sigma <= self.levels[1] * alpha or alpha == 0:
            return t
        return process.time(2 * (alpha / (sigma * (1 + self.churn))).log())

    def leave(self, process: Process, state: DiffusionState, s: Tensor) -> DiffusionState:
        raised, (alpha, sigma) = self._raised(process, state.t), process.coeffs(state.t)
        if raised == state.t:
            return state
        shrink = process.coeffs(raised)[0] / alpha
        added = (process.coeffs(raised)[1] ** 2 - (shrink * sigma) ** 2).clamp(min=0).sqrt()
        mean = like(shrink, state.x) * state.x
        return replace(drawn(state, mean, self.inflation * added, "leave"), t=raised)

    def move(self, denoise: Denoise, state: DiffusionState, s: Tensor) -> DiffusionState:
        return Heun().move(denoise, state, s)


def drift(process: Process, estimate: Estimate, t: Tensor, w: Tensor) -> Tensor:
    """velocity - w score, with score = -eps / sigma."""
    push = w / process.coeffs(t)[1]
    return slope(process, estimate, t) + like(push, estimate.eps) * estimate.eps


def coefficient(diffusion: Diffusion, process: Process, t: Tensor) -> Tensor:
    w = diffusion(process, t)
    if not w.isfinite():
        raise ValueError(
            f"{type(diffusion).__name__} diffusion is {w.item()} at t = {t.item():g} of "
            f"{type(process).__name__}: narrow process.ends or choose another diffusion"
        )
    return w


def drawn(
    state: DiffusionState, mean: Tensor, std: Tensor, purpose: str = "step"
) -> DiffusionState:
    """The state with x ~ N(mean, std^2), by its keys."""
    if std.ndim == 0 and std == 0:
        return replace(state, x=mean)
    z = state.keys.fold(purpose, state.k).normal(mean.shape[1:], mean.device)
    return replace(state, x=mean + like(std, mean) * z if std.ndim == 0 else mean + std * z)
