"""Image against image: copies of training data, and drift of a modified model.

Letters: N images, M references.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from genvis.evaluation.extraction import check_images, images_as_stored

CAP = 100.0  # dB: what two identical images score; at 8 bits only images above 227 x 227 could pass


@dataclass(frozen=True)
class Likeness:
    """values (N,): how like each pair of images is."""

    values: Tensor

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def fifth(self) -> float:
        """The 5th percentile: the pairs that drifted most."""
        return float(self.values.quantile(0.05))


def nearest_distances(images: Tensor, references: Tensor, chunk: int = 256) -> Tensor:
    """Euclidean distance in 8-bit pixels scaled to [-1, 1] from each image to its nearest
    reference, (N,) float64; exact. Images (N, 3, H, W) and references (M, 3, H, W) in [-1, 1].
    """
    check_images(images)
    check_images(references)
    if images.shape[1:] != references.shape[1:]:
        raise ValueError(
            f"images {tuple(images.shape[1:])} and references {tuple(references.shape[1:])} differ"
        )
    a, b = (images_as_stored(x).double().flatten(1) for x in (images, references))
    exact = "donot_use_mm_for_euclid_dist"  # the product form turns 0 into 1e-7
    near = [torch.cdist(rows, b, compute_mode=exact).amin(1) for rows in a.split(chunk)]
    return torch.cat(near)


def check_pairs(images: Tensor, references: Tensor, what: str) -> None:
    """ValueError, naming the measure, unless both are (N, 3, H, W) uint8 of one shape, N >= 1."""
    if images.dtype != torch.uint8 or references.dtype != torch.uint8:
        raise ValueError(f"{what} compares uint8 images, got {images.dtype} and {references.dtype}")
    if images.shape != references.shape or images.ndim != 4 or not len(images):
        raise ValueError(
            f"{what} needs two equal (N, 3, H, W), got {tuple(images.shape)} and "
            f"{tuple(references.shape)}"
        )


def psnr(images: Tensor, references: Tensor) -> Likeness:
    """10 log10(255^2 / MSE) per pair, at most `CAP`; both (N, 3, H, W) uint8, same keys a row."""
    check_pairs(images, references, "psnr")
    error = (images.double() - references.double()).square().flatten(1).mean(1)
    return Likeness((10 * torch.log10(255**2 / error)).clamp(max=CAP))  # error 0: +inf, capped
