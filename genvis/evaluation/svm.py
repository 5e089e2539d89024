"""An independent judge: a support vector machine on the pixels of real training images.

It shares neither architecture nor features with the extractor behind the Frechet distance, nor with
any verifier, so it cannot be fooled in the same way.
Source: Cortes and Vapnik 1995, "Support-vector networks", as in scikit-learn's SVC.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genvis.evaluation.extraction import check_images, images_as_stored


@dataclass(frozen=True)
class PixelSVM:
    """A fitted classifier of images of one size."""

    machine: Any
    shape: tuple[int, ...]

    @classmethod
    def fit(cls, images: Tensor, labels: Tensor, penalty: float = 10.0) -> "PixelSVM":
        """On images (N, 3, H, W) in [-1, 1] with labels (N,): radial kernel, scikit-learn's
        default width, penalty C.
        """
        from sklearn.svm import SVC

        check_images(images)
        if labels.shape != (len(images),) or len(labels.unique()) < 2:
            raise ValueError(
                f"labels must be ({len(images)},) of at least 2 classes, got {tuple(labels.shape)}"
            )
        machine = SVC(C=penalty, kernel="rbf", gamma="scale")
        machine.fit(_pixels(images), labels.cpu().numpy())
        return cls(machine, tuple(images.shape[1:]))

    def predict(self, images: Tensor) -> Tensor:
        """The class of every image (N,) int64."""
        check_images(images)
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(f"fitted on images {self.shape}, got {tuple(images.shape[1:])}")
        return torch.from_numpy(self.machine.predict(_pixels(images)))

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """The share of images (N, 3, H, W) recognised as their labels (N,)."""
        if labels.shape != (len(images),):
            raise ValueError(f"labels must be ({len(images)},), got {tuple(labels.shape)}")
        return float((self.predict(images) == labels.cpu()).double().mean())


def _pixels(images: Tensor) -> Any:
    """Grey values in [0, 1], (N, H W): the channels of a digit are equal."""
    return ((images_as_stored(images).mean(1) + 1) / 2).flatten(1).double().cpu().numpy()
