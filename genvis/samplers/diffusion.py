"""Sampling along a Gaussian path: a denoiser, a solver and a time grid as a `Sampler`.

Letters: B rows; t runs over a grid of num_steps + 1 times from noise to clean, kept on the CPU in
float64.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

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
        if state.k == self.num_steps:
            raise ValueError(f"the state has already made all {self.num_steps} steps")
        s = self.times[state.k + 1]
        moved = self.solver.move(self.denoise, self.look(state), s)
        return self._ready(replace(moved, t=s, k=state.k + 1, kept=None))

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
        visits = self.solver.visits(self.denoise.process, self.times[k], self.times[k + 1])
        return Cost(evaluations=sum(self.denoise.evaluations(t) for t in visits))
