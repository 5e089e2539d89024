"""Sampling along a Gaussian path: a denoiser, a solver and a time grid as a `Sampler`.

Letters: B rows; t runs over a grid of num_steps + 1 times from noise to clean, kept on the CPU in
float64.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genvis.random import HashKeys
from genvis.samplers.solvers import Solver
from genvis.samplers.state import DiffusionState
from genvis.types import Cond, Cost, Denoise, Process, Tokenizer


def uniform_times(process: Process, steps: int) -> Tensor:
    """steps + 1 equally spaced times from the noise end to the clean end, float64."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    clean, noise = process.times
    return torch.linspace(noise, clean, steps + 1, dtype=torch.float64)


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

    def init(self, noise: Tensor, cond: Cond, keys: HashKeys) -> DiffusionState:
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
        return DiffusionState(sigma.to(noise.dtype) * noise, 0, cond, keys)

    def look(self, state: DiffusionState) -> DiffusionState:
        if state.kept is not None or state.k == self.num_steps:
            return state
        return replace(state, kept=self.denoise(state.x, self.times[state.k], state.cond))

    def step(self, state: DiffusionState) -> DiffusionState:
        if state.k == self.num_steps:
            raise ValueError(f"the state has already made all {self.num_steps} steps")
        t, s = self.times[state.k : state.k + 2]
        moved = self.solver.move(self.denoise, self.look(state), t, s)
        return replace(moved, k=state.k + 1, kept=None)

    def preview(self, state: DiffusionState) -> Tensor:
        if state.k == self.num_steps:
            return self.tokenizer.decode(state.x)
        if state.kept is None:
            raise ValueError("preview needs what `look` keeps: call look(state) first")
        return self.tokenizer.decode(state.kept.x0)

    def rekey(self, state: DiffusionState, keys: HashKeys) -> DiffusionState:
        if not self.stochastic:
            raise ValueError("this solver draws no random numbers: copies can never diverge")
        return replace(state, keys=keys)

    def cost(self, k: int) -> Cost:
        calls = self.solver.calls(self.denoise.process, self.times[k + 1])
        return Cost(evaluations=self.denoise.evaluations * calls)
