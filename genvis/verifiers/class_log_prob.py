"""log p(label | image) by a classifier: the supervised verifier of Ma et al. 2025, section 3 (there
DINO and CLIP).
"""

from dataclasses import dataclass

from torch import Tensor

from genvis.config import config
from genvis.features.classifier import Classifier
from genvis.types import Cond


@config
class ClassLogProbConfig:
    classifier: str = "digits-verifier-v1"  # a shipped name or a folder

    def build(self) -> "ClassLogProb":
        return ClassLogProb(Classifier.from_pretrained(self.classifier))


@dataclass(frozen=True)
class ClassLogProb:
    classifier: Classifier

    @property
    def name(self) -> str:
        return f"log p[{self.classifier.name}:{self.classifier.sha256[:6]}]"

    def __call__(self, images: Tensor, cond: Cond) -> Tensor:
        """Scores (N,) of images (N, 3, H, W) for their labels."""
        if cond.label is None:
            raise ValueError("the class_log_prob verifier needs cond.label")
        return self.classifier.log_probs(images).gather(1, cond.label[:, None])[:, 0]
