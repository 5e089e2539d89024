"""CMMD: the biased squared MMD under a wide Gaussian kernel, of features of length one.

mean k(x, x') + mean k(y, y') - 2 mean k(x, y), pairs of a row with itself included, where
k(x, y) = exp(-|x - y|^2 / (2 sigma^2)). Comparable with published values for CLIP ViT-L/14-336
embeddings and sigma = 10 alone; biased upward by about 1000 (1 - mean k) / N for each set.
Source: Jayasumana et al. 2024, "Rethinking FID: towards a better evaluation metric for image
generation", section 4; Gretton et al. 2012, "A kernel two-sample test", equation 5.
Letters: N1, N2 rows, D features.
"""

import torch
from torch import Tensor

from genvis.evaluation.pairs import check_pair

SCALE = 1000.0  # the published factor, for readable numbers


def cmmd(a: Tensor, b: Tensor, *, sigma: float = 10.0, chunk: int = 1024) -> float:
    """1000 times the distance of features (N1, D) and (N2, D), each row first divided by its length
    in float64 (in float32, as published, the last digits of a float32 change: 1e-7 of the value).

    ValueError for fewer than 2 rows, unequal D, NaN, or a row of zeros, which has no direction.
    """
    a, b = check_pair(a, b, 2, chunk, "cmmd")
    return SCALE * gaussian_mmd2(_directions(a), _directions(b), sigma=sigma, chunk=chunk)


def gaussian_mmd2(a: Tensor, b: Tensor, *, sigma: float, chunk: int = 1024) -> float:
    """The distance (>= 0) of rows (N1, D) and (N2, D) as they are, in float64, `chunk` rows at a
    time; invariant to rotation and translation. ValueError for the same reasons.
    """
    a, b = check_pair(a, b, 2, chunk, "a kernel distance")
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    within = _mean_kernel(a, a, sigma, chunk) + _mean_kernel(b, b, sigma, chunk)
    return max(float(within - 2 * _mean_kernel(a, b, sigma, chunk)), 0.0)


def _directions(x: Tensor) -> Tensor:
    length = x.norm(dim=1, keepdim=True)
    if (zeros := int((length == 0).sum())) > 0:
        raise ValueError(f"features must have a direction: {zeros} of {len(x)} rows are zero")
    return x / length


def _mean_kernel(a: Tensor, b: Tensor, sigma: float, chunk: int) -> Tensor:
    """The mean of k - 1: the ones cancel in the distance, and k alone would round at 1e-16."""
    lengths, total = b.square().sum(1), a.new_zeros(())
    for rows in a.split(chunk):
        squared = rows.square().sum(1)[:, None] + lengths - 2 * rows @ b.mT
        total = total + torch.expm1(-squared.clamp(min=0) / (2 * sigma**2)).sum()
    return total / (len(a) * len(b))
