"""Denoising: regress what the prediction asks for at a random time. Flow matching is Linear with
Velocity, DDPM is Betas with Noise, EDM is VE with EDM and log-normal times.

Sources: Ho et al. 2020, eq. 14; Lipman et al. 2023, eq. 23; Nichol and Dhariwal 2021, eq. 16 (the
bound that trains a learned variance).
Letters: B batch; u uniforms; level in [0, 1], the share of the path.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Protocol

from torch import Tensor, nn

from genvis.config import config
from genvis.objectives import TIMES, WEIGHTS
from genvis.objectives.times import TimeSampler, Uniform
from genvis.objectives.weights import Constant, Weight
from genvis.processes.betas import Betas
from genvis.processes.denoiser import corrupt, like, solve, target
from genvis.processes.posterior import Posterior, bound, first_variance
from genvis.random import Keys
from genvis.types import Batch, Cond, Loss, Moments, Prediction, Process, Tokenizer


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
    weight: Annotated[Weight, WEIGHTS] = Constant()
    vlb: float = 0.0  # the weight of the variational bound, which trains a learned variance
    # the share of rows trained without their condition, for classifier-free guidance
    drop: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.drop <= 1:
            raise ValueError(f"drop must be in [0, 1], got {self.drop}")
        if self.vlb < 0:
            raise ValueError(f"vlb must be at least 0, got {self.vlb}")

    def build(self, model: Trained) -> "DenoisingLoss":
        """ValueError where a learned variance would stay untrained, or the bound has none."""
        process, prediction = model.config.process, model.config.prediction
        learned = getattr(prediction, "learned_variance", False)
        if learned and not self.vlb:
            raise ValueError(
                "nothing would train the learned variance: set objective.vlb to 1 (as DiT does) or "
                "prediction.learned_variance to false"
            )
        if self.vlb and not (learned and isinstance(process, Betas)):
            raise ValueError(
                "objective.vlb needs process 'betas' and a prediction with learned_variance"
            )
        return DenoisingLoss(self, process, prediction, model.tokenizer)


@dataclass(frozen=True)
class DenoisingLoss:
    objective: Denoising
    process: Process
    prediction: Prediction
    tokenizer: Tokenizer

    def __call__(
        self, net: nn.Module, batch: Batch, keys: Keys, level: Tensor | None = None
    ) -> Loss:
        """The weighted squared error, its mean over everything but the rows; level fixes t."""
        moments = batch.x if isinstance(batch.x, Moments) else self.tokenizer.encode(batch.x)
        x0 = moments.sample(keys.fold("latent"))
        eps = keys.fold("noise").normal(x0.shape[1:], x0.device)
        if level is None:
            u = keys.fold("time").uniform(device=x0.device)
            t = self.objective.times(self.process, u)
        else:
            t = self.process.at(level)  # (B,) float64

        cond = batch.cond
        if self.objective.drop:
            drop = keys.fold("drop").uniform(device=x0.device) < self.objective.drop
            cond = replace(cond, drop=drop if cond.drop is None else drop | cond.drop)
        scale, time = self.prediction.inputs(self.process, t)
        x_t = corrupt(self.process, x0, eps, t)
        wanted = target(self.process, self.prediction, x0, eps, t)
        error, out, var = self.error(net, like(scale, x0) * x_t, time.float(), cond, wanted)
        loss = self.objective.weight(self.process, self.prediction, t).to(error) * error
        logs = {}
        if var is not None:
            logs = {"bound": self._bound(x0, x_t, out.detach(), var.float(), t)}
            loss = loss + self.objective.vlb * logs["bound"]
        return Loss(loss, self.process.share(t).clamp(0, 1), logs)

    def error(
        self, net: nn.Module, x: Tensor, t: Tensor, cond: Cond, wanted: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The squared error (B,) of the network's output, the output, and its raw variance."""
        out, var = self.prediction.split(net(x, t, cond))
        if out.shape != wanted.shape:
            raise ValueError(
                f"the network's output is {tuple(out.shape)}, the prediction needs "
                f"{tuple(wanted.shape)}: check backbone.channels and learned_variance"
            )
        out = out.float()
        return (out - wanted).square().flatten(1).mean(1), out, var

    def _bound(self, x0: Tensor, x_t: Tensor, out: Tensor, var: Tensor, t: Tensor) -> Tensor:
        """The bound's term at t (B,), bits per dimension, that only the variance is trained by."""
        guess, _ = solve(self.process, self.prediction, x_t, out, t)
        floor = first_variance(self.process).to(t.device)
        posterior = Posterior.of(self.process, t, t - 1)
        return bound(posterior, x_t, x0, guess, posterior.learned(var, floor), floor)
