"""Classification by cross-entropy, with the small shifts and noise that an 8 x 8 digit survives."""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from genvis.config import config
from genvis.objectives.augment import shaken
from genvis.random import Keys
from genvis.types import Batch, Loss


@config
class Classification:
    shift: float = 0.0  # the largest translation, in pixels, uniform and sub-pixel
    noise: float = 0.0  # the largest standard deviation of Gaussian pixel noise, uniform per image
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if min(self.shift, self.noise) < 0 or not 0 <= self.label_smoothing < 1:
            raise ValueError("shift and noise must be at least 0 and label_smoothing in [0, 1)")

    def build(self, model: Any) -> "ClassificationLoss":
        return ClassificationLoss(self)


@dataclass(frozen=True)
class ClassificationLoss:
    objective: Classification

    def __call__(
        self, net: nn.Module, batch: Batch, keys: Keys, level: Tensor | None = None
    ) -> Loss:
        images = batch.x
        if net.training:
            images = shaken(images, keys, self.objective.shift, self.objective.noise)
        logits = net(images).float()
        assert batch.cond.label is not None
        smooth = self.objective.label_smoothing
        loss = F.cross_entropy(logits, batch.cond.label, reduction="none", label_smoothing=smooth)
        return Loss(loss, logs={"accuracy": (logits.argmax(1) == batch.cond.label).float()})
