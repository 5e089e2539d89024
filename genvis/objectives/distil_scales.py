"""Next-scale prediction taught by another model: a refiner that finishes what a drafter begins, or
a quantized network that is to do as it did in full precision.

    a T^2 D(student, teacher) + (1 - a) cross-entropy,   D of logits / T: KL(teacher || student)

Source: Chen et al. 2025, "Collaborative Decoding Makes Visual Auto-Regressive Modeling Efficient",
and the loss function of its released code; how it trains is not released. That the refiner learns
from the teacher's logits, at first of all scales and in the end of those it refines, is theirs.
Ours: the teacher sees the same images and (dropped) conditions; the scales that are not refined
fade linearly (`scales: {name: last}`) while every token keeps its 1 / L; T = 1 and a = 1. Other
divergences D, TopKLD among them, are in `objectives.divergences`.
Letters: a share, T temperature, D divergence.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from genvis.config import config
from genvis.objectives import DIVERGENCES
from genvis.objectives.divergences import Divergence, Forward, tempered
from genvis.objectives.next_scale import NextScale, NextScaleLoss
from genvis.objectives.teachers import teacher_of
from genvis.types import Cond


@config
class DistilScales(NextScale):
    teacher: str  # a model folder, a finished run's folder or a hub id
    divergence: Annotated[Divergence, DIVERGENCES] = Forward()
    temperature: float = 1.0
    share: float = 1.0  # of the teacher; the rest is the data's (the released loss has a half)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0 or not 0 <= self.share <= 1:
            raise ValueError("temperature must be positive and share in [0, 1]")

    def build(self, model: Any) -> "DistilScalesLoss":
        """ValueError unless the teacher predicts the same tokens."""
        plain = super().build(model)
        same = ("scales", "codes", "num_classes")
        teacher = teacher_of(model, self.teacher, same, ("tokenizer",))
        return DistilScalesLoss(self, plain.tokenizer, plain.sides, plain.weights, teacher)


@dataclass(frozen=True)
class DistilScalesLoss(NextScaleLoss):
    """The teacher is frozen and in evaluation mode."""

    objective: DistilScales
    teacher: nn.Module

    def of_tokens(self, logits: Tensor, nll: Tensor, inputs: Tensor, cond: Cond) -> Tensor:
        share, divergence = self.objective.share, self.objective.divergence
        with torch.no_grad():
            wanted = self.teacher(inputs, cond).float()
        apart = tempered(divergence, logits, wanted, self.objective.temperature)
        return share * apart + (1 - share) * super().of_tokens(logits, nll, inputs, cond)
