"""A small convolutional classifier: its logits verify, its penultimate features measure.

The shipped ones (`weights/`) were trained by `train_scripts/train_features.py`; the JSON beside
each holds its recipe, hash and accuracy.
Letters: B images, D features, K classes, w width.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genvis.checkpoint import WEIGHTS, file_sha256, load_state, read_folder, save_folder
from genvis.config import config
from genvis.models import MODELS, model_folder, read_model

SHIPPED = Path(__file__).parent / "weights"


@config
class ClassifierConfig:
    size: int = 8  # images are averaged down to this side
    channels: Literal[1, 3] = 1  # 1: of grey
    width: int = 32
    features: int = 32
    num_classes: int = 10
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.size < 4 or self.size % 4:
            raise ValueError(f"size must be a positive multiple of 4, got {self.size}")
        if min(self.width, self.features) < 1 or self.num_classes < 2:
            raise ValueError("width and features must be at least 1 and num_classes at least 2")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    def build(self) -> "Classifier":
        return Classifier(self, ClassifierNet(self))


class ClassifierNet(nn.Module):
    """Two levels of two convolutions, then a feature layer and a linear head."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.size, self.channels, w = config.size, config.channels, config.width
        self.trunk = nn.Sequential(
            *self._level(config.channels, w),
            nn.MaxPool2d(2),
            *self._level(w, 2 * w),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.drop = nn.Dropout(config.dropout)
        self.features = nn.Linear(2 * w * (config.size // 4) ** 2, config.features)
        self.head = nn.Linear(config.features, config.num_classes)

    @staticmethod
    def _level(inputs: int, outputs: int) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            layers += [
                nn.Conv2d(channels, outputs, 3, padding=1),
                nn.GroupNorm(4, outputs),
                nn.SiLU(),
            ]
        return layers

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, D)."""
        return F.silu(self.features(self.drop(self.trunk(self._seen(images)))))

    def maps(self, images: Tensor) -> list[Tensor]:
        """What each convolution makes of the images, after its activation: (B, C, h, w)."""
        x, found = self._seen(images), []
        for layer in self.trunk:
            x = layer(x)
            found += [x] if isinstance(layer, nn.SiLU) else []
        return found

    def _seen(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, channels, size, size)."""
        seen = images.mean(1, keepdim=True) if self.channels == 1 else images
        return F.adaptive_avg_pool2d(seen, self.size)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.head(self.drop(self.embed(images)))


@dataclass(frozen=True)
class Classifier:
    """Callable as an extractor: images (B, 3, H, W) in [-1, 1] -> features (B, D), float32."""

    config: ClassifierConfig
    net: ClassifierNet
    name: str = "untrained"
    sha256: str = ""

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Self:
        """A shipped one by name, or one from a model or run folder; in eval mode."""
        shipped = SHIPPED / str(source)
        folder = shipped if shipped.is_dir() else Path(model_folder(source))
        if not folder.is_dir():
            ours = (path.name for path in SHIPPED.glob("*/") if not (path / "vocab.json").exists())
            names = ", ".join(sorted(ours))
            raise ValueError(
                f"{str(source)!r} is neither a folder nor one of the shipped classifiers: {names}"
            )
        saved = read_folder(folder)
        fresh = read_model(saved, folder, ClassifierConfig).build()
        load_state(fresh.net, saved.tensors, str(folder))
        fresh.net.eval().requires_grad_(False)
        digest = file_sha256(folder / WEIGHTS)
        name = folder.parent.name if folder.name == "model" else folder.name  # a run's model
        return cls(fresh.config, fresh.net, name, digest)

    def save_pretrained(self, folder: str | Path) -> None:
        save_folder(folder, MODELS.dump(self.config), self.net.state_dict())

    def to(self, device: torch.device | str) -> Self:
        return replace(self, net=self.net.to(device))

    def __call__(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.net.embed(images).float()

    @property
    def resize(self) -> str:
        return f"average to {self.config.size} x {self.config.size}"

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        """What metrics read, in one pass: `features` (B, D) and `logits` (B, K)."""
        with torch.no_grad():
            features = self.net.embed(images)
            return {"features": features.float(), "logits": self.net.head(features).float()}

    def log_probs(self, images: Tensor) -> Tensor:
        """log p(class | image), (B, K)."""
        return self.net(images).float().log_softmax(1)


@config
class ClassifierFeatures:
    """A classifier as a feature extractor: a shipped one by name, or a model or run folder."""

    source: str

    def build(self) -> Classifier:
        return Classifier.from_pretrained(self.source)


DIGITS_CNN_V1 = ClassifierFeatures(source="digits-cnn-v1")
