"""Inception Score, exp of the mean KL between p(y|x) and p(y), in the conventions in use.

They differ in how the images are cut into groups, each with its own p(y), so their values differ:
name the convention beside the value. `blocks` is the ADM evaluator's, `splits` is torch-fidelity's
(and, unshuffled, the original code's), `whole` takes all images at once. All are in float64.
Source: Salimans et al. 2016, "Improved techniques for training GANs", section 4; Barratt and Sharma
2018, "A note on the inception score".
Letters: N images, C classes, G groups.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class InceptionScore:
    """values (G,) float64, one per group of images, each in [1, C]."""

    values: Tensor

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def sd(self) -> float:
        """Between groups, divisor G, as published; 0 where there is one group."""
        return float(self.values.std(correction=0))


def blocks(logits: Tensor, size: int = 5000) -> InceptionScore:
    """Consecutive blocks of `size` rows of logits (N, C) in the order given, on which the value
    depends; a short last block has the same weight. ValueError for NaN, N < 2, C < 2.
    """
    _check(logits)
    if size < 2:
        raise ValueError(f"size must be at least 2 rows, one alone scores 1, got {size}")
    return InceptionScore(torch.stack([_score(rows) for rows in logits.split(size)]))


def splits(logits: Tensor, splits: int = 10, order: Tensor | None = None) -> InceptionScore:
    """Group i is rows i N // splits to (i + 1) N // splits of logits (N, C), taken in `order` (N,):
    `legacy_order(N)` for torch-fidelity's default, None for the order given.
    """
    _check(logits)
    n = len(logits)
    if not 1 <= splits <= n:
        raise ValueError(f"splits must be in 1..{n}, the number of rows, got {splits}")
    if order is not None:
        if not torch.equal(order.sort().values.cpu(), torch.arange(n)):
            raise ValueError(f"order must hold each of the rows 0..{n - 1} once")
        logits = logits[order.to(logits.device)]
    cuts = [(i * n // splits, (i + 1) * n // splits) for i in range(splits)]
    return InceptionScore(torch.stack([_score(logits[i:j]) for i, j in cuts]))


def whole(logits: Tensor) -> float:
    """One score over all rows of logits (N, C), in [1, C]; its order does not matter."""
    _check(logits)
    return float(_score(logits))


def legacy_order(n: int, seed: int = 2020) -> Tensor:
    """torch-fidelity's shuffle of n rows, (n,) int64: NumPy's frozen legacy generator."""
    return torch.from_numpy(np.random.RandomState(seed).permutation(n)).long()


def _score(logits: Tensor) -> Tensor:
    log_p = logits.double().log_softmax(1)
    marginal = log_p.logsumexp(0) - torch.tensor(len(logits)).double().log()  # no log of zero
    return (log_p.exp() * (log_p - marginal)).sum(1).mean().exp()


def _check(logits: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floating point of shape (N, C) with C >= 2, got "
            f"{tuple(logits.shape)} {logits.dtype}"
        )
    if len(logits) < 2:
        raise ValueError(f"a score needs at least 2 rows of logits, got {len(logits)}")
    if not logits.isfinite().all():
        bad = int((~logits.isfinite()).any(1).sum())
        raise ValueError(f"logits must be finite: {bad} of {len(logits)} rows hold NaN or inf")
