"""Denoising: regress what the prediction asks for at a random time. Flow matching is Linear with
Velocity.

Source: Ho et al. 2020, eq. 14; Lipman et al. 2023, eq. 23.
Letters: B batch; u uniforms; level in [0, 1] from clean to noise.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Protocol

from torch import Tensor, nn

from genvis.config import config
from genvis.objectives import TIMES
from genvis.objectives.times import TimeSampler, Uniform
from genvis.processes.denoiser import corrupt, like, target
from genvis.random import Keys
from genvis.types import Batch, Loss, Moments, Prediction, Process, Tokenizer


class Path(Protocol):
    """The process and prediction that a generator is sampled with are those it is trained with."""

    @property
    def process(self) -> Process: ...
    @property
    def prediction(self) -> Prediction: ...


class Trained(Protocol):
    @property
    def config(self) -> Path: ...
    @property
    def tokenizer(self) -> Tokenizer: ...


@config
class Denoising:
    times: Annotated[TimeSampler, TIMES] = Uniform()
    # the share of rows trained without their condition, for classifier-free guidance
    drop: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.drop <= 1:
            raise ValueError(f"drop must be in [0, 1], got {self.drop}")

    def build(self, model: Trained) -> "DenoisingLoss":
        """ValueError where the network also predicts a variance: this loss would not train it."""
        if getattr(model.config.prediction, "learned_variance", False):
            raise ValueError("denoising has no loss for a learned variance: set it to false")
        return DenoisingLoss(self, model.config.process, model.config.prediction, model.tokenizer)


@dataclass(frozen=True)
class DenoisingLoss:
    objective: Denoising
    process: Process
    prediction: Prediction
    tokenizer: Tokenizer

    def __call__(
        self, net: nn.Module, batch: Batch, keys: Keys, level: Tensor | None = None
    ) -> Loss:
        """Mean squared error over everything but the rows."""
        moments = batch.x if isinstance(batch.x, Moments) else self.tokenizer.encode(batch.x)
        x0 = moments.sample(keys.fold("latent"))
        eps = keys.fold("noise").normal(x0.shape[1:], x0.device)
        if level is None:
            level = self.objective.times(keys.fold("time").uniform(device=x0.device))
        clean, noise = self.process.times
        t = clean + (noise - clean) * level  # (B,) float64

        cond = batch.cond
        if self.objective.drop:
            drop = keys.fold("drop").uniform(device=x0.device) < self.objective.drop
            cond = replace(cond, drop=drop if cond.drop is None else drop | cond.drop)
        scale, time = self.prediction.inputs(self.process, t)
        x_t = corrupt(self.process, x0, eps, t)
        out, _ = self.prediction.split(net(like(scale, x0) * x_t, time.float(), cond))
        wanted = target(self.process, self.prediction, x0, eps, t)
        if out.shape != wanted.shape:
            raise ValueError(
                f"the network's output is {tuple(out.shape)}, the prediction needs "
                f"{tuple(wanted.shape)}: check backbone.channels and learned_variance"
            )
        error = out.float() - wanted
        return Loss(error.square().flatten(1).mean(1), level)
