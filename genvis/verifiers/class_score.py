"""How clearly an image is of its class, by a classifier: the supervised verifiers of Ma et al.

A log-probability counts every other class against it; a logit does not, and has no upper end.
Source: Ma et al. 2025, "Inference-time Scaling for Diffusion Models beyond Scaling Denoising
Steps", section 3 (there the logits of CLIP without training and of a linear head on DINO).
Letters: B images, K classes, E and D features.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from genvis.checkpoint import file_sha256, load_state
from genvis.config import config
from genvis.devices import processes
from genvis.features import EXTRACTORS
from genvis.features.classifier import Classifier
from genvis.features.clip import ImagesAndWords, images_and_words, read_state
from genvis.types import Cond
from genvis.verifiers.scoring import Need, PerImage

Form = Literal["log_prob", "logit"]


class Logits(Protocol):
    """Images (B, 3, H, W) in [-1, 1] -> (B, K); `name` with the hash of its weights."""

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> int: ...
    @property
    def differentiable(self) -> bool: ...
    @property
    def device(self) -> torch.device: ...
    def __call__(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ClassScore(PerImage):
    """The label's log-probability or logit."""

    logits: Logits
    form: Form = "log_prob"
    needs: ClassVar[tuple[Need, ...]] = ("label",)

    @property
    def name(self) -> str:
        return f"{'log p' if self.form == 'log_prob' else 'logit'}[{self.logits.name}]"

    @property
    def device(self) -> torch.device:
        return self.logits.device

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        return self.logits.differentiable

    def check(self, cond: Cond) -> None:
        assert cond.label is not None
        low, high = int(cond.label.min()), int(cond.label.max())
        if low < 0 or high >= self.logits.classes:
            raise ValueError(
                f"{self.name} knows labels 0 to {self.logits.classes - 1}, got {low} to {high}"
            )

    def score(self, images: Tensor, cond: Cond) -> Tensor:
        assert cond.label is not None
        found = self.logits(images).float()
        found = found.log_softmax(1) if self.form == "log_prob" else found
        return found.gather(1, cond.label.to(found.device)[:, None])[:, 0]


@dataclass(frozen=True)
class OwnClassifier:
    """One that genvis trained."""

    classifier: Classifier
    differentiable: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return f"{self.classifier.name}:{self.classifier.sha256[:6]}"

    @property
    def classes(self) -> int:
        return self.classifier.config.num_classes

    @property
    def device(self) -> torch.device:
        return next(self.classifier.net.parameters()).device

    def __call__(self, images: Tensor) -> Tensor:
        return self.classifier.net(images)


@dataclass(frozen=True)
class ZeroShot:
    """CLIP, asked which class's words are nearest; words (K, E), each of length one."""

    clip: ImagesAndWords
    words: Tensor
    differentiable: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return f"{self.clip.name}:{self.clip.sha256[:6]}"

    @property
    def classes(self) -> int:
        return len(self.words)

    @property
    def device(self) -> torch.device:
        return self.clip.device

    def __call__(self, images: Tensor) -> Tensor:
        return self.clip.scale * self.clip.images(images) @ self.words.mT


@dataclass(frozen=True)
class LinearHead:
    """weight (K, D) and bias (K,) on the features of an extractor."""

    extractor: Any
    weight: Tensor
    bias: Tensor
    sha256: str
    differentiable: ClassVar[bool] = False  # extractors round to 8 bits

    @property
    def name(self) -> str:
        return f"{self.extractor.name}:{self.extractor.sha256[:6]}+head:{self.sha256[:6]}"

    @property
    def classes(self) -> int:
        return len(self.bias)

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def __call__(self, images: Tensor) -> Tensor:
        return F.linear(self.extractor(images), self.weight, self.bias)


@config
class ClassLogProbConfig:
    """By a classifier of genvis: a shipped name, or its model or run folder."""

    classifier: str = "digits-verifier-v1"

    def build(self) -> ClassScore:
        return ClassScore(OwnClassifier(_own(self.classifier)))


@config
class ClassLogitConfig:
    """As `ClassLogProbConfig`."""

    classifier: str = "digits-verifier-v1"

    def build(self) -> ClassScore:
        return ClassScore(OwnClassifier(_own(self.classifier)), "logit")


@config
class ZeroShotConfig:
    """By a network of images and words, as in `clip_score`; classes: the words for 0, 1, ..."""

    path: str
    classes: tuple[str, ...]
    template: str = "a photo of a {}."
    form: Form = "log_prob"

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise ValueError(f"classes must name at least 2, got {len(self.classes)}")
        if "{}" not in self.template:
            raise ValueError(f"template must hold {{}} for the class, got {self.template!r}")

    def build(self) -> ClassScore:
        clip = images_and_words(self.path).to(processes().device)
        words = torch.stack([clip.text(self.template.format(each)) for each in self.classes])
        return ClassScore(ZeroShot(clip, words), self.form)


@config
class LinearHeadConfig:
    """By a linear layer on an extractor's features; path: a file of its `weight` and `bias`."""

    extractor: Annotated[Any, EXTRACTORS]
    path: str
    form: Form = "log_prob"

    def build(self) -> ClassScore:
        device, state = processes().device, read_state(Path(self.path))
        extractor = self.extractor.build().to(device)
        features = extractor(torch.zeros(1, 3, 32, 32, device=device)).shape[1]
        head = torch.nn.Linear(features, len(state.get("bias", ())))
        load_state(head, state, self.path)
        weight, bias = head.weight.detach().to(device), head.bias.detach().to(device)
        found = LinearHead(extractor, weight, bias, file_sha256(self.path))
        return ClassScore(found, self.form)


def _own(source: str) -> Classifier:
    return Classifier.from_pretrained(source).to(processes().device)
