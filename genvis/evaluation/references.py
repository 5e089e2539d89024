"""What a generator must beat: a Gaussian over pixels, and copies of the training set.

Both take the training images (N, 3, H, W) in [-1, 1] with labels (N,), and give one image per new
label (B,) that is a function of its row of keys.
Letters: N training images, B new ones, P = 3 H W pixel values, n images of a class.
"""

import torch
from torch import Tensor

from genvis.evaluation.extraction import check_images, images_as_stored
from genvis.random import Keys


def pixel_gaussian(images: Tensor, labels: Tensor, new_labels: Tensor, keys: Keys) -> Tensor:
    """Draws from one Gaussian per class with the mean and full covariance of its pixels, clipped
    and rounded to 8 bits like any sample.
    """
    _check(images, labels, new_labels, least=2)
    flat = images.double().flatten(1)
    noise = keys.normal((flat.shape[1],), flat.device).double()  # (B, P)
    result = flat.new_empty(len(new_labels), flat.shape[1])
    for label in new_labels.unique():
        known, wanted = flat[labels == label], new_labels == label
        rows = (known - known.mean(0)) / (len(known) - 1) ** 0.5  # rows^T rows is the covariance
        if len(rows) > rows.shape[1]:
            rows = torch.linalg.qr(rows, mode="r").R
        result[wanted] = known.mean(0) + noise[wanted, : len(rows)] @ rows
    return images_as_stored(result.clamp(-1, 1).view(-1, *images.shape[1:]).float())


def copies(images: Tensor, labels: Tensor, new_labels: Tensor, keys: Keys) -> Tensor:
    """Training images of the wanted classes, drawn with replacement: what memorising looks like."""
    _check(images, labels, new_labels, least=1)
    uniform = keys.uniform().to(labels.device)  # (B,)
    rows = torch.empty_like(new_labels)
    for label in new_labels.unique():
        known, wanted = (labels == label).nonzero()[:, 0], new_labels == label
        rows[wanted] = known[(uniform[wanted] * len(known)).long()]
    return images_as_stored(images[rows])


def _check(images: Tensor, labels: Tensor, new_labels: Tensor, least: int) -> None:
    check_images(images)
    if labels.shape != (len(images),) or new_labels.ndim != 1 or not len(new_labels):
        raise ValueError(
            f"labels must be (N,) = ({len(images)},) and new_labels (B,), got "
            f"{tuple(labels.shape)} and {tuple(new_labels.shape)}"
        )
    for label in new_labels.unique():
        if (found := int((labels == label).sum())) < least:
            raise ValueError(f"class {int(label)} needs {least} training images, got {found}")
