"""Contrast of images with their captions: each is to find its own partner among the batch's.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
Supervision", figure 3: symmetric cross-entropy over cosines times a learned temperature.
Letters: B pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genvis.config import config
from genvis.objectives.augment import shaken
from genvis.random import Keys
from genvis.types import Batch, Loss


class Pairing(Protocol):
    """A model of images and words."""

    def logits(self, net: nn.Module, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] against prompts: (B, B), a row an image."""
        ...


@config
class Contrastive:
    """The partners to choose from are those of one micro-batch of one process, so `accumulate`
    changes what is learned. A caption that several images share counts as wrong for all but its
    own: at the optimum the logits are log p(caption | image) / p(caption), up to a constant.
    """

    shift: float = 0.0  # the largest translation, in pixels, uniform and sub-pixel
    noise: float = 0.0  # the largest standard deviation of Gaussian pixel noise, uniform per image

    def __post_init__(self) -> None:
        if min(self.shift, self.noise) < 0:
            raise ValueError(
                f"shift and noise must be at least 0, got {self.shift} and {self.noise}"
            )

    def build(self, model: Pairing) -> "ContrastiveLoss":
        return ContrastiveLoss(self, model)


@dataclass(frozen=True)
class ContrastiveLoss:
    objective: Contrastive
    model: Pairing

    def __call__(
        self, net: nn.Module, batch: Batch, keys: Keys, level: Tensor | None = None
    ) -> Loss:
        images = batch.x
        if batch.cond.prompts is None:
            raise ValueError("contrast needs images with captions; this dataset has none")
        if net.training:
            images = shaken(images, keys, self.objective.shift, self.objective.noise)
        logits = self.model.logits(net, images, batch.cond.prompts).float()
        own = torch.arange(len(logits), device=logits.device)
        of_images, of_captions = (
            F.cross_entropy(each, own, reduction="none") for each in (logits, logits.mT)
        )
        found = (logits.argmax(1) == own).float()
        return Loss((of_images + of_captions) / 2, logs={"top1": found})
