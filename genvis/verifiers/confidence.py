"""What one image adds to the logarithm of an Inception Score.

IS = exp of the mean KL(p(y|x) || p(y)). With p(y) uniform, as it is over balanced labels, one
image's share is log K minus the entropy of p(y|x): it reads nothing but the image, and is content
with a clear image of any class.
Source: Salimans et al. 2016, "Improved techniques for training GANs", section 4; as a verifier, Ma
et al. 2025 (there an oracle on the growing set: `genvis/evaluation/oracle.py`).
Letters: B images, K classes.
"""

from dataclasses import dataclass
from math import log
from typing import Annotated, Any

import torch
from torch import Tensor

from genvis.config import config
from genvis.devices import processes
from genvis.features import EXTRACTORS
from genvis.types import Cond
from genvis.verifiers.scoring import PerImage


@dataclass(frozen=True)
class Confidence(PerImage):
    """In [0, log K]. extractor: one whose `heads` have logits."""

    extractor: Any
    place: torch.device

    @property
    def name(self) -> str:
        return f"IS-confidence[{self.extractor.name}:{self.extractor.sha256[:6]}]"

    @property
    def device(self) -> torch.device:
        return self.place

    def score(self, images: Tensor, cond: Cond) -> Tensor:
        heads = self.extractor.heads(images)
        if "logits" not in heads:
            raise ValueError(f"{self.extractor.name} gives no logits; there are {', '.join(heads)}")
        log_p = heads["logits"].double().log_softmax(1)  # (B, K)
        return log(log_p.shape[1]) + (log_p.exp() * log_p).sum(1)


@config
class ConfidenceConfig:
    extractor: Annotated[Any, EXTRACTORS]

    def build(self) -> Confidence:
        device = processes().device
        return Confidence(self.extractor.build().to(device), device)
