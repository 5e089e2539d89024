"""DINOv2 and CLIP features through the transformers package, from local folders.

Nothing is downloaded: a model is a folder as `save_pretrained` writes it. Images are prepared by
Pillow (`features/prepare.py`), so that the numbers do not move with the package.
Source: Oquab et al. 2023, "DINOv2"; Stein et al. 2023, "Exposing flaws of generative model
evaluation metrics" (FD of its class token); Radford et al. 2021, "Learning Transferable Visual
Models From Natural Language Supervision".
Letters: B images, D features, S the side of the network's input.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from genvis.config import config
from genvis.features.prepare import Prepare
from genvis.images import to_uint8

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
ROWS = 32  # images in one pass


@dataclass(frozen=True)
class TransformersFeatures:
    """Callable as an extractor: images (B, 3, H, W) in [-1, 1] -> features (B, D), float32."""

    net: Any
    prepare: Prepare
    embed: Callable[[Any, Tensor], Tensor]  # (network, its input) -> (B, D)
    name: str
    sha256: str

    @property
    def resize(self) -> str:
        how = "square" if self.prepare.fit == "square" else "short side and centre"
        return f"Pillow bicubic, {how} {self.prepare.size}"

    def to(self, device: torch.device | str) -> Self:
        return replace(self, net=self.net.to(device))

    def __call__(self, images: Tensor) -> Tensor:
        parts = to_uint8(images).split(ROWS)
        with torch.no_grad():
            found = [self.embed(self.net, self.prepare(p).to(images.device)) for p in parts]
        return torch.cat(found).float()

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": self(images)}


@config
class DINOv2Features:
    """The class token after the last norm, (B, 1024) for ViT-L/14."""

    path: str
    name: str = "dinov2"
    size: int = 224

    def __post_init__(self) -> None:
        _check_size(self.size)

    def build(self) -> TransformersFeatures:
        net = load_local("AutoModel", self.path)
        prepare = Prepare(self.size, *IMAGENET, "square")
        return TransformersFeatures(
            net, prepare, _class_token, self.name, weights_sha256(self.path)
        )


@config
class CLIPFeatures:
    """The projected image embedding; CMMD is published for ViT-L/14 at 336 pixels."""

    path: str
    name: str = "clip"
    size: int = 224

    def __post_init__(self) -> None:
        _check_size(self.size)

    def build(self) -> TransformersFeatures:
        net = load_local("CLIPModel", self.path)
        return TransformersFeatures(
            net, Prepare(self.size), _image_embedding, self.name, weights_sha256(self.path)
        )


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")


def _class_token(net: Any, x: Tensor) -> Tensor:
    return net(pixel_values=x).last_hidden_state[:, 0]


def _image_embedding(net: Any, x: Tensor) -> Tensor:
    pooled = net.vision_model(pixel_values=x).pooler_output
    return net.visual_projection(pooled)


def load_local(kind: str, path: str) -> Any:
    """What transformers calls `kind`, from a local folder. ImportError if it is not installed."""
    if not Path(path).is_dir():
        raise ValueError(f"{path}: no such model folder, and nothing is downloaded")
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ImportError(f"{kind} features need the package transformers") from error
    loaded = getattr(transformers, kind).from_pretrained(path, local_files_only=True)
    return loaded.eval().requires_grad_(False) if hasattr(loaded, "eval") else loaded


def weights_sha256(path: str) -> str:
    """Of the weight files of a model folder, in the order of their names."""
    files = sorted(Path(path).glob("*.safetensors")) or sorted(Path(path).glob("*.bin"))
    if not files:
        raise ValueError(f"{path}: holds no weights (.safetensors or .bin)")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
