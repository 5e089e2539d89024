"""Sampling along a Gaussian path: a denoiser, a solver and a time grid as a `Sampler`.

Letters: B rows; t runs over a grid of num_steps + 1 times from noise to clean, kept on the CPU in
float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genvis.processes.denoiser import like
from genvis.random import Keys
from genvis.samplers.solvers import Solver
from genvis.samplers.state import DiffusionState
from genvis.types import Cond, Cost, Denoise, Tokenizer


@dataclass(frozen=True)
class DiffusionSampler:
    """noise_shape is the latent's (C, h, w); whether it is stochastic is the solver's to say."""

    denoise: Denoise
    tokenizer: Tokenizer
    solver: Solver
    times: Tensor
    noise_shape: tuple[int, ...]
    device: torch.device

    @property
    def stochastic(self) -> bool:
        return self.solver.stochastic

    @property
    def num_steps(self) -> int:
        return len(self.times) - 1

    def init(self, noise: Tensor, cond: Cond, keys: Keys) -> DiffusionState:
        """The state at the noise end: noise (B, *noise_shape) standard normal."""
        if tuple(noise.shape[1:]) != tuple(self.noise_shape):
            raise ValueError(
                f"noise must be (B, *{tuple(self.noise_shape)}), got {tuple(noise.shape)}"
            )
        if len(cond) != len(noise):
            raise ValueError(
                f"noise and cond must have the same rows, got {len(noise)} and {len(cond)}"
            )
        _, sigma = self.denoise.process.coeffs(self.times[0])
        x = sigma.to(noise.dtype) * noise
        return self._ready(DiffusionState(x, self.times[0], 0, cond, keys))

    def look(self, state: DiffusionState) -> DiffusionState:
        if state.kept is not None or state.k == self.num_steps:
            return state
        return replace(state, kept=self.denoise(state.x, state.t, state.cond))

    def step(self, state: DiffusionState) -> DiffusionState:
        s = self._next(state)
        moved = self.solver.move(self.denoise, self.look(state), s)
        return self._ready(replace(moved, t=s, k=state.k + 1, kept=None))

    def transition(self, state: DiffusionState) -> tuple[Tensor, Tensor]:
        """(mean, std) of the next step's x, std a scalar or shaped like x; 0 where it is certain.

        ValueError if the solver's steps are not Gaussian around one look.
        """
        if not hasattr(self.solver, "transition"):
            raise ValueError(
                f"the steps of {type(self.solver).__name__} have no Gaussian transition: choose "
                "ddim, ancestral or euler_maruyama"
            )
        return self.solver.transition(self.denoise.process, self.look(state), self._next(state))

    def arrive(self, state: DiffusionState, x: Tensor) -> DiffusionState:
        """The state after the next step, had it led to x."""
        return self._ready(replace(state, x=x, t=self._next(state), k=state.k + 1, kept=None))

    def with_x(self, state: DiffusionState, x: Tensor) -> DiffusionState:
        """The same moment at another point."""
        return replace(state, x=x, kept=None)

    def renoise(self, state: DiffusionState, k: int, keys: Keys) -> DiffusionState:
        """Back to where fewer steps, k, are done, by the noise of the process; keys own the future.

        x_t = (alpha_t / alpha_s) x_s + sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2) z.
        """
        if not 0 <= k < state.k:
            raise ValueError(f"renoise goes back to a step in [0, {state.k}), got {k}")
        process, t = self.denoise.process, self.times[k]
        (alpha_s, sigma_s), (alpha_t, sigma_t) = process.coeffs(state.t), process.coeffs(t)
        shrink = alpha_t / alpha_s
        added = (sigma_t**2 - (shrink * sigma_s) ** 2).clamp(min=0).sqrt()
        z = keys.fold("renoise", state.k).normal(state.x.shape[1:], state.x.device)
        x = like(shrink, state.x) * state.x + like(added, z) * z
        return self._ready(DiffusionState(x, t, k, state.cond, keys))

    def _next(self, state: DiffusionState) -> Tensor:
        if state.k == self.num_steps:
            raise ValueError(f"the state has already made all {self.num_steps} steps")
        return self.times[state.k + 1]

    def _ready(self, state: DiffusionState) -> DiffusionState:
        """Where the next step starts from, and where the network looks."""
        if state.k == self.num_steps:
            return state
        return self.solver.leave(self.denoise.process, state, self.times[state.k + 1])

    def preview(self, state: DiffusionState) -> Tensor:
        if state.k == self.num_steps:
            return self.tokenizer.decode(state.x)
        if state.kept is None:
            raise ValueError("preview needs what `look` keeps: call look(state) first")
        return self.tokenizer.decode(state.kept.x0)

    def rekey(self, state: DiffusionState, keys: Keys) -> DiffusionState:
        if not self.solver.random_after(self.denoise.process, self.times, state.k):
            raise ValueError(
                f"nothing after step {state.k} of {self.num_steps} by "
                f"{type(self.solver).__name__} is random: copies can never diverge"
            )
        return replace(state, keys=keys)

    def cost(self, k: int) -> Cost:
        return Cost(evaluations=sum(self.denoise.evaluations(t) for t in self._visits(k)))

    def look_cost(self, k: int) -> Cost:
        """The share of step k's cost that `look` spends."""
        return Cost(evaluations=self.denoise.evaluations(self._visits(k)[0]))

    def _visits(self, k: int) -> Sequence[Tensor]:
        return self.solver.visits(self.denoise.process, self.times[k], self.times[k + 1])
