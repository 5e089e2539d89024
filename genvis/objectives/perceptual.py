"""Distances between images that a viewer would agree with more than with squared errors.

Nothing is downloaded: `classifier` reads features trained here, `gradients` needs none, `lpips`
reads weights that are on this machine.
Sources: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual
Metric", eq. 1; Mathieu et al. 2016, "Deep Multi-Scale Video Prediction Beyond Mean Square Error",
section 3.3 (gradient differences). Letters: B pairs, C channels, h w map size.
"""

from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genvis.config import config
from genvis.features.classifier import Classifier, ClassifierNet
from genvis.features.lpips import LPIPS


class Perceptual(Protocol):
    def build(self) -> nn.Module:
        """Frozen; called with two (B, 3, H, W) in about [-1, 1], gives (B,) >= 0."""
        ...


@config
class LPIPSDistance:
    """VGG as everyone trains with it; a folder with its weight files, else GENVIS_LPIPS_WEIGHTS."""

    backbone: Literal["alex", "vgg"] = "vgg"
    folder: str | None = None

    def build(self) -> nn.Module:
        return LPIPS.from_weights(self.backbone, self.folder).net


@config
class ClassifierDistance:
    """A trained classifier's maps, channels of length one, each as important as any other."""

    source: str  # a shipped classifier by name, or a model or run folder

    def build(self) -> nn.Module:
        return MapDistance(Classifier.from_pretrained(self.source).net)


class MapDistance(nn.Module):
    def __init__(self, net: ClassifierNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        pairs = zip(self.net.maps(a), self.net.maps(b), strict=True)
        gaps = [F.normalize(x, dim=1) - F.normalize(y, dim=1) for x, y in pairs]
        return torch.stack([gap.square().sum(1).mean((1, 2)) for gap in gaps]).mean(0)


@config
class Gradients:
    """L1 between images and between their differences along x and y, over a pyramid of sizes."""

    levels: int = 3

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise ValueError(f"levels must be at least 1, got {self.levels}")

    def build(self) -> nn.Module:
        return GradientDistance(self.levels)


class GradientDistance(nn.Module):
    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        least = 2**self.levels  # the coarsest level still has neighbours
        if min(a.shape[2:]) < least:
            raise ValueError(
                f"{self.levels} levels need {least} pixels a side, got {tuple(a.shape)}"
            )
        gap, total = a - b, a.new_zeros(len(a))
        for k in range(self.levels):
            gap = F.avg_pool2d(gap, 2) if k else gap
            for x in (gap, gap.diff(dim=-1), gap.diff(dim=-2)):
                total = total + x.abs().flatten(1).mean(1)
        return total
