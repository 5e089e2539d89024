"""SigLIP through the transformers package, from a local folder; nothing is downloaded.

Both sides of an image go to the network's size; a prompt is read in lower case, padded to the full
length without a mask, as it was trained.
Source: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training"; Tschannen et al. 2025,
"SigLIP 2". Letters: B rows, E width of the shared space, S side of the network's input.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from genvis.config import config
from genvis.features.prepare import Prepare
from genvis.integrations.transformers_features import load_local, weights_sha256

HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class SigLIP:
    """Images in [-1, 1] and words in, unit vectors (B, E) out. A logit is scale x cosine plus a
    bias, which orders nothing.
    """

    net: Any
    tokenizer: Any
    name: str
    sha256: str
    prepare: Prepare

    @property
    def device(self) -> torch.device:
        return self.net.device

    @property
    def scale(self) -> Tensor:
        return self.net.logit_scale.exp()

    def to(self, device: torch.device | str) -> Self:
        return replace(self, net=self.net.to(device))

    def seen(self, x: Tensor) -> Tensor:
        """Prepared images (B, 3, S, S) -> (B, E) of length one, with gradients."""
        return F.normalize(self.net.vision_model(pixel_values=x).pooler_output, dim=1)

    def images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, E) of length one, with gradients."""
        return self.seen(self.prepare.floating(images))

    def text(self, prompt: str) -> Tensor:
        """(E,) of length one. ValueError for more tokens than fit."""
        most = self.net.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            [prompt.lower()], padding="max_length", max_length=most, return_tensors="pt"
        )
        ids = tokens.input_ids
        if ids.shape[1] > most:
            raise ValueError(
                f"the prompt {prompt[:40]!r} has {ids.shape[1]} tokens, more than the {most} that "
                "this SigLIP reads; shorten it"
            )
        with torch.no_grad():
            return F.normalize(self.net.text_model(ids.to(self.device)).pooler_output, dim=1)[0]


@config
class SigLIPFolder:
    """As `SiglipModel.save_pretrained` writes it, with the tokenizer's files there, or in the
    folder `tokenizer`.
    """

    path: str
    tokenizer: str | None = None

    def build(self) -> SigLIP:
        net = load_local("SiglipModel", self.path).float()
        words = load_local("AutoTokenizer", self.tokenizer or self.path)
        prepare = Prepare(net.config.vision_config.image_size, HALF, HALF, "square")
        name = Path(self.path).resolve().name
        return SigLIP(net, words, name, weights_sha256(self.path), prepare)
