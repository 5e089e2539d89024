"""A Gaussian mixture along a Gaussian path, and its exponential tilt, in closed form, float64.

p0 = sum_k w_k N(m_k, S_k); r(x) = b.x - (x - c)' Q (x - c) / 2; target p0(x) exp(lam r(x)).
Letters: K components, d dimensions, P points.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genvis.random import Keys
from genvis.types import Cond, Cost, Estimate, Process


@dataclass(frozen=True)
class Tilt:
    b: Tensor
    q: Tensor
    c: Tensor
    lam: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """r(x) of x (..., d), without lam."""
        x = x.double()
        gap = x - self.c
        return x @ self.b - ((gap @ self.q) * gap).sum(-1) / 2


@dataclass(frozen=True)
class Mixture:
    """weights (..., K), means (..., K, d), covs (K, d, d)."""

    weights: Tensor
    means: Tensor
    covs: Tensor

    @property
    def mean(self) -> Tensor:
        return (self.weights[..., None] * self.means).sum(-2)

    @property
    def cov(self) -> Tensor:
        gap = self.means - self.mean[..., None, :]
        within = (self.weights[..., None, None] * self.covs).sum(-3)
        return within + torch.einsum("...k,...ki,...kj->...ij", self.weights, gap, gap)

    def expect(self, tilt: Tilt) -> Tensor:
        """E r."""
        spread = torch.einsum("kij,ji->k", self.covs, tilt.q) / 2
        return (self.weights * (tilt(self.means) - spread)).sum(-1)

    def posterior(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> "Mixture":
        """p(x0 | alpha x0 + sigma eps = x) for x (P, d)."""
        gain, gap, log_w = self._observed(x, alpha, sigma)
        means = self.means + torch.einsum("kij,pkj->pki", gain, gap)
        covs = self.covs - alpha * gain @ self.covs
        return Mixture(log_w.softmax(-1), means, covs)

    def log_p(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self._observed(x, alpha, sigma)[2].logsumexp(-1)

    def _observed(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gains (K, d, d), residuals (P, K, d), log of weight times likelihood (P, K)."""
        d = x.shape[-1]
        seen = alpha**2 * self.covs + sigma**2 * torch.eye(d, dtype=x.dtype)
        gap = x[:, None] - alpha * self.means
        far = torch.einsum("pki,kij,pkj->pk", gap, seen.inverse(), gap)
        constant = seen.logdet() + d * torch.log(torch.tensor(2 * torch.pi, dtype=x.dtype))
        log_w = self.weights.log() - (far + constant) / 2
        return alpha * self.covs @ seen.inverse(), gap, log_w

    def tilted(self, tilt: Tilt) -> tuple["Mixture", Tensor]:
        """The tilted mixture, and log E exp(lam r)."""
        lam, q, c = tilt.lam, tilt.q, tilt.c
        precision = self.covs.inverse()
        covs = (precision + lam * q).inverse()
        h = torch.einsum("kij,...kj->...ki", precision, self.means) + lam * (tilt.b + q @ c)
        means = torch.einsum("kij,...kj->...ki", covs, h)
        old = torch.einsum("...ki,kij,...kj->...k", self.means, precision, self.means)
        log_w = self.weights.log() + (covs.logdet() - self.covs.logdet()) / 2
        log_w = log_w + ((h * means).sum(-1) - old - lam * (c @ q @ c)) / 2
        return Mixture(log_w.softmax(-1), means, covs), log_w.logsumexp(-1)

    def sample(self, u: Tensor, z: Tensor) -> Tensor:
        """One draw of each of P mixtures, or P draws of one: u (P,) uniform, z (P, d) normal."""
        cdf = self.weights.cumsum(-1).expand(len(u), -1).contiguous()
        k = torch.searchsorted(cdf, u[:, None])[:, 0].clamp(max=cdf.shape[1] - 1)
        means = self.means.expand(len(u), *self.means.shape[-2:])[torch.arange(len(u)), k]
        return means + torch.einsum("pij,pj->pi", torch.linalg.cholesky(self.covs)[k], z)


@dataclass(frozen=True)
class MixtureDenoise:
    """The best possible estimate along a process; x may have any shape (P, ...) of d numbers."""

    mixture: Mixture
    process: Process

    def evaluations(self, t: Tensor) -> int:
        return 1

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Estimate:
        alpha, sigma = self.process.coeffs(t.double())
        flat = x.double().flatten(1)
        x0 = self.mixture.posterior(flat, alpha, sigma).mean
        eps = (flat - alpha * x0) / sigma
        return Estimate(x0.to(x.dtype).view_as(x), eps.to(x.dtype).view_as(x))


def from_golden(given: dict[str, Tensor]) -> tuple[Mixture, Tilt]:
    """The mixture and, where there is one, the tilt of a golden case."""
    mixture = Mixture(*(given[name].double() for name in ("weights", "means", "covs")))
    if "b" not in given:
        none = torch.zeros_like(mixture.means[0])
        return mixture, Tilt(none, torch.diag(none), none)
    return mixture, Tilt(given["b"], given["Q"], given["c"], given["lam"].item())


@dataclass(frozen=True)
class Points:
    """x (B, d) after k steps."""

    x: Tensor
    keys: Keys
    k: int = 0


@dataclass(frozen=True)
class ExactSampler:
    """The reverse process of a mixture without any error of discretisation: x0 is drawn from its
    posterior, then x_s given both. "Images" are points (B, d); a step counts as one evaluation.
    """

    mixture: Mixture
    process: Process
    times: Tensor

    stochastic = True
    device = torch.device("cpu")

    @property
    def num_steps(self) -> int:
        return len(self.times) - 1

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return tuple(self.mixture.means.shape[1:])

    def init(self, noise: Tensor, cond: Cond, keys: Keys) -> Points:
        return Points(noise.double(), keys)

    def look(self, state: Points) -> Points:
        return state

    def look_cost(self, k: int) -> Cost:
        return Cost(evaluations=1)

    def cost(self, k: int) -> Cost:
        return Cost(evaluations=1)

    def rekey(self, state: Points, keys: Keys) -> Points:
        if state.k == self.num_steps:
            raise ValueError("nothing ahead is random")
        return replace(state, keys=keys)

    def preview(self, state: Points) -> Tensor:
        if state.k == self.num_steps:
            return state.x
        return self.mixture.posterior(state.x, *self.process.coeffs(self.times[state.k])).mean

    def step(self, state: Points) -> Points:
        (alpha, sigma), (alpha_s, sigma_s) = (
            self.process.coeffs(t) for t in self.times[state.k : state.k + 2]
        )
        keys = state.keys.fold("step", state.k)
        u, z = keys.fold("component").uniform(), keys.normal((2, *self.noise_shape)).double()
        x0 = self.mixture.posterior(state.x, alpha, sigma).sample(u, z[:, 0])
        a = alpha / alpha_s
        v = sigma**2 - (a * sigma_s) ** 2
        mean = a * (sigma_s / sigma) ** 2 * state.x + alpha_s * v / sigma**2 * x0
        x = mean + (v.sqrt() * sigma_s / sigma) * z[:, 1]
        return Points(x, state.keys, state.k + 1)


@dataclass(frozen=True)
class Reward:
    """The tilt as a verifier of points."""

    tilt: Tilt
    name: str = "tilt"
    differentiable: bool = True

    def __call__(self, images: Tensor, cond: Cond) -> Tensor:
        return self.tilt(images)
