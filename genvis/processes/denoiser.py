"""From a network's output to (x0, eps): the one place where parametrisations, time and precision
meet.

Letters: B batch; alpha, sigma the path's coefficients; (p, q) the prediction's row.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from genvis.types import Cond, Estimate, Prediction, Process


def like(coefficient: Tensor, x: Tensor) -> Tensor:
    """A scalar or (B,) coefficient, shaped and typed to multiply x (B, ...)."""
    return (
        coefficient.to(x).view(-1, *[1] * (x.ndim - 1))
        if coefficient.ndim
        else coefficient.to(x.dtype)
    )


def corrupt(process: Process, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t = alpha x0 + sigma eps at t (B,)."""
    alpha, sigma = process.coeffs(t)
    return like(alpha, x0) * x0 + like(sigma, x0) * eps


def target(process: Process, prediction: Prediction, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """What a perfect network would put out: p x0 + q eps at t (B,)."""
    p, q = prediction.row(process, t)
    return like(p, x0) * x0 + like(q, x0) * eps


def solve(
    process: Process, prediction: Prediction, x: Tensor, out: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """(x0, eps) from out = p x0 + q eps and x = alpha x0 + sigma eps, in float32."""
    (p, q), (alpha, sigma) = prediction.row(process, t), process.coeffs(t)
    det = alpha * q - sigma * p
    x0 = like(q / det, x) * x - like(sigma / det, x) * out
    eps = like(alpha / det, x) * out - like(p / det, x) * x
    return x0, eps


def paired(process: Process, x: Tensor, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(x0, eps) where eps is the noise that x = alpha x0 + sigma eps leaves for it."""
    alpha, sigma = (like(c, x) for c in process.coeffs(t))
    return x0, (x - alpha * x0) / sigma


@dataclass(frozen=True)
class Denoiser:
    """A network as an estimate of (x0, eps) along a process. The only cast to the network's dtype
    is here.
    """

    net: nn.Module
    process: Process
    prediction: Prediction

    def evaluations(self, t: Tensor) -> int:
        return 1

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Estimate:
        """x (B, ...) at time t, a scalar or (B,)."""
        scale, time = self.prediction.inputs(self.process, t)
        dtype = next(self.net.parameters()).dtype
        out = self.net(
            (like(scale, x) * x).to(dtype), time.float().to(x.device).expand(len(x)), cond
        )
        out, var = self.prediction.split(out.to(x.dtype))
        if out.shape != x.shape:
            raise ValueError(
                f"the network's output is {tuple(out.shape)} for x {tuple(x.shape)}: the "
                "prediction's learned_variance must be the backbone's"
            )
        return Estimate(*solve(self.process, self.prediction, x, out, t), var)
