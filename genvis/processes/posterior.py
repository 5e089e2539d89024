"""One step back along a Gaussian path, q(x_s | x_t, x0) for s < t, and the bound it gives.

Sources: Ho et al. 2020, eqs. 6 and 7 (posterior); Nichol and Dhariwal 2021, "Improved Denoising
Diffusion Probabilistic Models", section 3.1 (learned variance), eqs. 4 to 7 (bound); Kingma et al.
2021, "Variational Diffusion Models", appendix A (any path).
Letters: B rows; a = alpha_t / alpha_s; v a raw learned variance, -1 the smallest, 1 the largest.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genvis.processes.denoiser import like
from genvis.types import Process


@dataclass(frozen=True)
class Posterior:
    """q(x_s | x_t, x0) = N(on_x x_t + on_x0 x0, small); large is the variance of q(x_t | x_s)."""

    on_x: Tensor
    on_x0: Tensor
    small: Tensor
    large: Tensor

    @classmethod
    def of(cls, process: Process, t: Tensor, s: Tensor) -> "Posterior":
        """From t back to s < t, in float64."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (process.coeffs(i.double()) for i in (t, s))
        a = alpha_t / alpha_s
        large = sigma_t**2 - (a * sigma_s) ** 2
        kept = (sigma_s / sigma_t) ** 2
        return cls(a * kept, alpha_s * large / sigma_t**2, large * kept, large)

    def mean(self, x: Tensor, x0: Tensor) -> Tensor:
        return like(self.on_x, x) * x + like(self.on_x0, x) * x0

    def learned(self, v: Tensor, floor: Tensor | float = 0.0) -> Tensor:
        """log variance (B, ...), between that of `small`, at least `floor`, and that of `large`."""
        share = (v + 1) / 2
        small = torch.clamp(self.small, min=floor)
        return share * like(self.large.log(), v) + (1 - share) * like(small.log(), v)


def first_variance(process: Process) -> Tensor:
    """The smallest posterior variance of a table of betas that is not 0: from index 1 to 0. The
    released code puts it in the place of the 0.
    """
    return Posterior.of(process, torch.tensor(1.0), torch.tensor(0.0)).small


def bound(
    posterior: Posterior,
    x: Tensor,
    x0: Tensor,
    guess: Tensor,
    log_variance: Tensor,
    floor: Tensor | float,
) -> Tensor:
    """The step's share of the variational bound (B,), bits per dimension.

    x at t, the true x0, the network's guess of it, and its log variance. Where the step ends clean
    (small = 0) it is the likelihood of x0 in 255 bins over [-1, 1], else KL(q || p).
    """
    means = posterior.mean(x, x0), posterior.mean(x, guess)
    true_log_variance = like(torch.clamp(posterior.small, min=floor).log(), x)
    divergence = _divergence(means[0], true_log_variance, means[1], log_variance)
    likelihood = _binned_log_likelihood(x0, means[1], log_variance / 2)
    nats = torch.where(like(posterior.small, x) == 0, -likelihood, divergence)
    return nats.flatten(1).mean(1) / math.log(2)


def prior_bound(process: Process, x0: Tensor) -> Tensor:
    """KL(q(x_T | x0) || N(0, 1)) (B,), bits per dimension."""
    alpha, sigma = process.coeffs(torch.tensor(process.times[1], dtype=torch.float64))
    zero = torch.zeros_like(x0)
    nats = _divergence(like(alpha, x0) * x0, like(2 * sigma.log(), x0) + zero, zero, zero)
    return nats.flatten(1).mean(1) / math.log(2)


def _divergence(m1: Tensor, log_v1: Tensor, m2: Tensor, log_v2: Tensor) -> Tensor:
    """KL(N(m1, v1) || N(m2, v2)) of every coordinate."""
    gap = (m1 - m2) ** 2 * torch.exp(-log_v2)
    return 0.5 * (log_v2 - log_v1 + torch.exp(log_v1 - log_v2) + gap - 1)


def _binned_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log N(mean, std^2) of the bin around x, 2/255 wide; the outer bins reach to infinity."""
    inverse = torch.exp(-log_std)
    upper = _normal_cdf((x - mean + 1 / 255) * inverse)
    lower = _normal_cdf((x - mean - 1 / 255) * inverse)
    lower = torch.where(x < -0.999, torch.zeros_like(lower), lower)
    upper = torch.where(x > 0.999, torch.ones_like(upper), upper)
    return (upper - lower).clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation of Page 1977, which published bounds were computed with."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
