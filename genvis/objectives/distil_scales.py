"""Next-scale prediction taught by a larger model: a refiner that finishes what a drafter begins.

    a T^2 KL(teacher || student) + (1 - a) cross-entropy,   both softmaxes of logits / T

Source: Chen et al. 2025, "Collaborative Decoding Makes Visual Auto-Regressive Modeling Efficient",
and the loss function of its released code; how it trains is not released. That the refiner learns
from the teacher's logits, at first of all scales and in the end of those it refines, is theirs.
Ours: the teacher sees the same images and (dropped) conditions; the scales that are not refined
fade linearly (`scales: {name: last}`) while every token keeps its 1 / L; T = 1 and a = 1.
Letters: a share, T temperature.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genvis.config import config
from genvis.objectives.next_scale import NextScale, NextScaleLoss
from genvis.types import Cond


@config
class DistilScales(NextScale):
    teacher: str  # a model folder, a finished run's folder or a hub id
    temperature: float = 1.0
    share: float = 1.0  # of the teacher; the rest is the data's (the released loss has a half)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0 or not 0 <= self.share <= 1:
            raise ValueError("temperature must be positive and share in [0, 1]")

    def build(self, model: Any) -> "DistilScalesLoss":
        """ValueError unless the teacher predicts the same tokens."""
        plain = super().build(model)
        found = type(model).from_pretrained(self.teacher)
        ours, theirs = model.config, found.config
        for part in ("scales", "codes", "num_classes"):
            a, b = (getattr(one.backbone, part) for one in (ours, theirs))
            if a != b:
                raise ValueError(f"teacher {self.teacher} has {part} {b}, this model has {a}")
        if ours.tokenizer != theirs.tokenizer:
            raise ValueError(f"teacher {self.teacher} has another tokenizer than this model")
        teacher = found.net.to(next(model.net.parameters()).device)
        return DistilScalesLoss(self, plain.tokenizer, plain.sides, plain.weights, teacher)


@dataclass(frozen=True)
class DistilScalesLoss(NextScaleLoss):
    """The teacher is frozen and in evaluation mode."""

    objective: DistilScales
    teacher: nn.Module

    def of_tokens(self, logits: Tensor, nll: Tensor, inputs: Tensor, cond: Cond) -> Tensor:
        t, share = self.objective.temperature, self.objective.share
        with torch.no_grad():
            wanted = (self.teacher(inputs, cond).float() / t).log_softmax(2)
        given = (logits / t).log_softmax(2)
        kl = F.kl_div(given, wanted, reduction="none", log_target=True).sum(2)
        return share * t**2 * kl + (1 - share) * super().of_tokens(logits, nll, inputs, cond)
