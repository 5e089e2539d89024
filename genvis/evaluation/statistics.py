"""Streaming mean and covariance in float64, mergeable in any split over batches and ranks.

Source: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing
sample variances". Adding up x x^T and subtracting would lose every digit when |mean| >> std. What
rounding cuts off the mean is carried along (Kahan 1965), so that small covariances survive too.
Letters: n rows seen, D features, m2 the sum of centred outer products.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """n, mean (D,), rest (D,) of the mean below its last digit, m2 (D, D), all float64; extractor:
    the sha256 of what made the features, if any.
    """

    n: int
    mean: Tensor
    rest: Tensor
    m2: Tensor
    extractor: str | None = None

    @classmethod
    def of(cls, features: Tensor, extractor: str | None = None) -> "Statistics":
        """Of features (N, D); N may be 0 or 1, for the odd last batch. ValueError for NaN."""
        check_features(features)
        x = features.double()
        mean = x.mean(0) if len(x) else x.new_zeros(x.shape[1])
        rest = (x - mean).mean(0) if len(x) else mean
        centred = x - mean - rest
        return cls(len(x), mean, rest, centred.mT @ centred, extractor)

    @classmethod
    def of_moments(
        cls, n: int, mean: Tensor, covariance: Tensor, extractor: str | None = None
    ) -> "Statistics":
        """From a published mean (D,) and covariance (D, D) with divisor n - 1."""
        if n < 2:
            raise ValueError(f"a covariance needs n >= 2, got {n}")
        check_moments(mean, covariance)
        mean, m2 = mean.double(), covariance.double() * (n - 1)
        return cls(n, mean, torch.zeros_like(mean), m2, extractor)

    @property
    def dim(self) -> int:
        return len(self.mean)

    @property
    def covariance(self) -> Tensor:
        """(D, D) with divisor n - 1, like every public implementation."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 rows, got {self.n}")
        return self.m2 / (self.n - 1)

    def __add__(self, other: "Statistics") -> "Statistics":
        """The statistics of both sets of rows. Ranks: gather, then add in rank order."""
        same_features(self, other)
        n = self.n + other.n
        if n == 0:
            return self
        step = (other.mean - self.mean) + (other.rest - self.rest)
        m2 = self.m2 + other.m2 + torch.outer(step, step) * (self.n * other.n / n)
        move = self.rest + step * (other.n / n)
        mean = self.mean + move
        return replace(self, n=n, mean=mean, rest=move - (mean - self.mean), m2=m2)


def same_features(a: Statistics, b: Statistics) -> None:
    """ValueError unless both sets were measured in the same space by the same weights."""
    if a.dim != b.dim:
        raise ValueError(f"statistics of {a.dim} and {b.dim} features cannot be compared")
    if a.extractor != b.extractor:
        raise ValueError(
            f"statistics of different extractors cannot be compared: sha256 {a.extractor} "
            f"and {b.extractor}"
        )


def check_features(features: Tensor) -> None:
    """ValueError unless (N, D) floating point and finite."""
    if features.ndim != 2 or features.shape[1] == 0 or not features.is_floating_point():
        raise ValueError(
            f"features must be floating point of shape (N, D), got {tuple(features.shape)} "
            f"{features.dtype}"
        )
    if not features.isfinite().all():
        bad = int((~features.isfinite()).any(1).sum())
        raise ValueError(f"features must be finite: {bad} of {len(features)} rows hold NaN or inf")


def check_moments(mean: Tensor, covariance: Tensor) -> None:
    """ValueError unless mean (D,) and covariance (D, D) are finite and fit each other."""
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"mean (D,) and covariance (D, D) do not fit: {tuple(mean.shape)} and "
            f"{tuple(covariance.shape)}"
        )
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise ValueError("mean and covariance must be finite, got NaN or inf")
