"""Resampling: indices of parents, drawn so that each has N W children on average.

Sources: Douc, Cappé and Moulines 2005, "Comparison of Resampling Schemes for Particle Filtering"
(multinomial, residual, stratified, systematic); Gerber, Chopin and Whiteley 2019, "Negative
Association, Ordering and Convergence of Resampling Methods" (SSP).
Letters: B prompts, N particles with weights W (B, N) that add up to 1, M children; u uniforms.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Scheme = Literal["systematic", "stratified", "multinomial", "residual", "ssp"]
TINY = 2.0**-60  # in the place of a uniform of 0, whose logarithm is infinite


def ess(log_w: Tensor) -> Tensor:
    """The effective sample size 1 / sum W^2 of unnormalised log weights (..., N)."""
    return 1 / log_w.softmax(-1).square().sum(-1)


def log_mean(log_w: Tensor) -> Tensor:
    """log of the mean weight: what resampling adds to the estimate of log Z."""
    return log_w.logsumexp(-1) - torch.tensor(log_w.shape[-1], dtype=log_w.dtype).log()


def systematic(w: Tensor, u: Tensor, m: int) -> Tensor:
    """Points (u + i) / M with one uniform a prompt, u (B, 1)."""
    return inverse_cdf(w, (u + torch.arange(m)) / m)


def stratified(w: Tensor, u: Tensor, m: int) -> Tensor:
    """Points (u_i + i) / M, u (B, M)."""
    return inverse_cdf(w, (u + torch.arange(m)) / m)


def multinomial(w: Tensor, u: Tensor, m: int) -> Tensor:
    """Independent draws, u (B, M + 1), in ascending order."""
    return inverse_cdf(w, ordered(u))


def residual(w: Tensor, u: Tensor, m: int) -> Tensor:
    """floor(M W) children for certain, first; the rest drawn from what is left of the weights, by
    the first uniforms of u (B, M + 1).
    """
    return torch.stack([_residual(*row, m) for row in zip(w, u, strict=True)])


def _residual(w: Tensor, u: Tensor, m: int) -> Tensor:
    copies = (m * w).floor().long()
    certain = torch.arange(len(w)).repeat_interleave(copies)
    rest = m - len(certain)
    if rest == 0:
        return certain
    left = (m * w - copies) / rest
    return torch.cat([certain, inverse_cdf(left[None], ordered(u[None, : rest + 1]))[0]])


def ssp(w: Tensor, u: Tensor, m: int) -> Tensor:
    """The Srinivasan sampling process: floor(M W) or ceil(M W) children each, u (B, N - 1).

    Two particles at a time, fractions f_i and f_j of a child are moved from one to the other until
    one of them has a whole child or none; it is done, and the next particle takes its place.
    """
    return torch.stack([_ssp(*row, m) for row in zip(w, u.tolist(), strict=True)])


def _ssp(w: Tensor, u: list[float], m: int) -> Tensor:
    n, children = len(w), (m * w).floor().long()
    f = (m * w - children).tolist()
    i, j = 0, 1
    for k, draw in enumerate(u, start=2):
        to_i, to_j = min(f[j], 1 - f[i]), min(f[i], 1 - f[j])
        if to_i + to_j > 0 and draw < to_i / (to_i + to_j):
            i, j = j, i  # the one that gains comes first
        if f[j] < 1 - f[i]:
            f[i] += f[j]
            j = k
        else:
            f[j] -= 1 - f[i]
            children[i] += 1
            i = k
    last = i if j == n else j
    children[last] += round(f[last])  # whole but for rounding
    return torch.arange(n).repeat_interleave(children)


def inverse_cdf(w: Tensor, points: Tensor) -> Tensor:
    """The first particle whose cumulated weight reaches each of the points (B, M) in [0, 1]; never
    one without any weight.
    """
    cdf = w.cumsum(-1)
    return torch.searchsorted(cdf / cdf[..., -1:], points.clamp(min=TINY, max=1))


def ordered(u: Tensor) -> Tensor:
    """Uniforms in ascending order (B, M) from M + 1 unordered ones, by exponential spacings."""
    sums = -u.clamp(min=TINY).log().cumsum(-1)
    return sums[..., :-1] / sums[..., -1:]


@dataclass(frozen=True)
class Rule:
    """parents(w, u, m): (B, m) indices; uniforms(n, m): how many it takes a prompt."""

    parents: Callable[[Tensor, Tensor, int], Tensor]
    uniforms: Callable[[int, int], int]


RULES: dict[Scheme, Rule] = {
    "systematic": Rule(systematic, lambda n, m: 1),
    "stratified": Rule(stratified, lambda n, m: m),
    "multinomial": Rule(multinomial, lambda n, m: m + 1),
    "residual": Rule(residual, lambda n, m: m + 1),
    "ssp": Rule(ssp, lambda n, m: n - 1),
}
