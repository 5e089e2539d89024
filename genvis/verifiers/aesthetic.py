"""How much people would like an image, whatever it shows: LAION's aesthetic predictor.

An MLP without activations, hence one affine map, on CLIP's image embedding of length one; scores
are about 1 to 10. ImageReward ends in the same head.
Source: Schuhmann 2022, "improved-aesthetic-predictor", the sac+logos+ava1 weights for ViT-L/14.
Letters: B images, E width of CLIP's shared space.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from genvis.checkpoint import file_sha256, load_state
from genvis.config import config
from genvis.devices import processes
from genvis.features.clip import CLIP, read_state
from genvis.types import Cond
from genvis.verifiers.scoring import PerImage


class AffineHead(nn.Module):
    """Linear layers with dropout after the first few, under the published names."""

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int] = (1024, 128, 64, 16, 1),
        dropout: Sequence[float] = (0.2, 0.2, 0.1),
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for k, outputs in enumerate(hidden):
            layers.append(nn.Linear(inputs, outputs))
            layers += [nn.Dropout(dropout[k])] if k < len(dropout) else []
            inputs = outputs
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (B,)."""
        return self.layers(x)[:, 0]


@dataclass(frozen=True)
class Aesthetic(PerImage):
    clip: CLIP
    head: AffineHead
    sha256: str  # of the head's file
    differentiable: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return f"aesthetic[{self.clip.name}:{self.clip.sha256[:6]}+head:{self.sha256[:6]}]"

    @property
    def device(self) -> torch.device:
        return self.clip.device

    def score(self, images: Tensor, cond: Cond) -> Tensor:
        return self.head(self.clip.images(images))


@config
class AestheticConfig:
    """path: the head, sac+logos+ava1-l14-linearMSE.pth; clip: a folder of CLIP ViT-L/14."""

    path: str
    clip: str

    def build(self) -> Aesthetic:
        clip = CLIP.from_folder(self.clip).to(processes().device)
        head = AffineHead(clip.net.config.shared)
        load_state(head, read_state(self.path), self.path)
        head.eval().requires_grad_(False)
        return Aesthetic(clip, head.to(clip.device), file_sha256(self.path))
