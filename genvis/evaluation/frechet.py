"""Frechet distance between two Gaussians, exact, never complex.

|m1 - m2|^2 + Tr S1 + Tr S2 - 2 Tr (S1 S2)^(1/2), where the last trace is the sum of the singular
values of L1^T L2 for any factors S = L L^T: no square root of a product that is not symmetric.
Source: Dowson and Landau 1982, "The Frechet distance between multivariate normal distributions";
Heusel et al. 2017, "GANs trained by a two time-scale update rule".
Letters: N images, D features, m a mean (D,), S a covariance (D, D), r its rank.
"""

import scipy.linalg
import torch
from torch import Tensor

from genvis.evaluation.statistics import (
    Statistics,
    check_features,
    check_moments,
    same_features,
)

ROUNDING = 1e-9  # of Tr S1 + Tr S2: what may be negative is far below this
SQUARING = 1e-9  # of the root's trace: what the quick way to it may lose by a bound, far from kept


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """The distance (squared units). ValueError for n < 2 or statistics of different extractors."""
    same_features(a, b)
    return frechet_from_moments(a.mean, a.covariance, b.mean, b.covariance)


def frechet_from_moments(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """The distance from means (D,) and covariances (D, D) with divisor n - 1."""
    check_moments(mean1, cov1)
    check_moments(mean2, cov2)
    if len(mean1) != len(mean2):
        raise ValueError(f"moments of {len(mean1)} and {len(mean2)} features cannot be compared")
    traces = cov1.double().trace() + cov2.double().trace()
    return _distance(mean1.double() - mean2.double(), traces, trace_sqrt(cov1, cov2))


def frechet_from_features(a: Tensor, b: Tensor) -> float:
    """The distance from features (N1, D) and (N2, D) by their Gram matrix: fast where N is small,
    and exact where N <= D.
    """
    for features in (a, b):
        check_features(features)
        if len(features) < 2:
            raise ValueError(f"a covariance needs at least 2 rows, got {len(features)}")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[1]} and {b.shape[1]} features cannot be compared")
    a, b = a.double(), b.double()
    left, right = _rows(a), _rows(b)
    root = torch.linalg.svdvals(left @ right.mT).sum()
    return _distance(a.mean(0) - b.mean(0), left.square().sum() + right.square().sum(), root)


def trace_sqrt(cov1: Tensor, cov2: Tensor) -> Tensor:
    """Tr (S1 S2)^(1/2), float64 scalar, of two positive semi-definite (D, D)."""
    s1, s2 = _checked(cov1), _checked(cov2)
    quick = _from_squares(s1, s2)
    return torch.linalg.svdvals(_factor(s1).mT @ _factor(s2)).sum() if quick is None else quick


def expected_floor(covariance: Tensor, n1: int, n2: int | None) -> float:
    """The distance to expect between n1 and n2 (None: unlimited) samples of one Gaussian, to first
    order in 1/n.

    (1/n1 + 1/n2) (sum_i l_i + 1/2 sum_ij l_i l_j / (l_i + l_j) + 1/4 sum_i l_i) over eigenvalues l;
    within 4 % for n >= 2 D.
    """
    if n1 < 2 or (n2 is not None and n2 < 2):
        raise ValueError(f"a covariance needs n >= 2, got {n1} and {n2}")
    values = torch.linalg.eigvalsh(_checked(covariance)).clamp(min=0)
    pairs = values[:, None] + values
    harmonic = torch.where(pairs > 0, torch.outer(values, values) / pairs, 0).sum()
    share = 1 / n1 + (0 if n2 is None else 1 / n2)
    return float(share * (1.25 * values.sum() + 0.5 * harmonic))


def _distance(shift: Tensor, traces: Tensor, root: Tensor) -> float:
    distance = float(shift @ shift + traces - 2 * root)
    if not distance >= -ROUNDING * max(1.0, float(traces)):  # also catches NaN
        raise ArithmeticError(f"Frechet distance {distance} is negative beyond rounding")
    return max(distance, 0.0)


def _rows(x: Tensor) -> Tensor:
    """Rows whose Gram matrix x^T x is the covariance: at most min(N, D) of them."""
    rows = (x - x.mean(0)) / (len(x) - 1) ** 0.5
    return torch.linalg.qr(rows, mode="r").R if len(rows) > rows.shape[1] else rows


def _from_squares(s1: Tensor, s2: Tensor) -> Tensor | None:
    """The trace by the squared singular values, the eigenvalues of S1 S2 as LAPACK's symmetric
    problem: six times faster, but rounding e in a square v^2 is e / 2v in v. None where that adds
    up to more than `SQUARING`, as it does near singular covariances.
    """
    try:
        squares = scipy.linalg.eigh(
            s1.cpu().numpy(),
            s2.cpu().numpy(),
            type=2,  # S1 S2 v = w v
            eigvals_only=True,
            driver="gv",
            check_finite=False,
        )
    except (scipy.linalg.LinAlgError, ValueError):  # S2 is singular
        return None
    if squares[0] <= 0:
        return None
    values = torch.from_numpy(squares).sqrt()
    lost = torch.finfo(torch.float64).eps * values[-1] ** 2 * (0.5 / values).sum()
    return values.sum().to(s1.device) if lost < SQUARING * values.sum() else None


def _factor(s: Tensor) -> Tensor:
    """L (D, r) with L L^T = S. What rounding left of a zero eigenvalue, 1e-16 of the largest, would
    count as 1e-8 after the root, so it goes.
    """
    values, vectors = torch.linalg.eigh(s)
    largest = values.max().clamp(min=0)
    if values.min() < -1e-6 * largest or largest == 0 > values.min():
        raise ValueError(
            f"not a covariance: eigenvalues from {values.min():.3g} to {values.max():.3g}"
        )
    keep = values > len(values) * torch.finfo(torch.float64).eps * largest
    return vectors[:, keep] * values[keep].sqrt()


def _checked(covariance: Tensor) -> Tensor:
    s = covariance.double()
    if s.ndim != 2 or s.shape[0] != s.shape[1] or not s.isfinite().all():
        raise ValueError(f"a covariance must be finite, of shape (D, D), got {tuple(s.shape)}")
    skew = s - s.mT
    if not skew.any():
        return s
    if torch.linalg.vector_norm(skew, torch.inf) > 1e-6 * torch.linalg.vector_norm(s, torch.inf):
        raise ValueError("a covariance must be symmetric")
    return s.sub(skew, alpha=0.5)
