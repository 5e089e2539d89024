"""DINOv2 and CLIP features, and CLIPScore, through the transformers package, from local folders.

Nothing is downloaded: a model is a folder as `save_pretrained` writes it. Images are prepared here,
by Pillow, so that the numbers do not move with the package: the shortest side to `size` (bicubic,
antialiased, in 8 bits), the middle square, then mean and standard deviation.
Source: Oquab et al. 2023, "DINOv2"; Stein et al. 2023, "Exposing flaws of generative model
evaluation metrics" (FD of its class token); Radford et al. 2021, "Learning Transferable Visual
Models From Natural Language Supervision"; Hessel et al. 2021, "CLIPScore".
Letters: B images, D features, S the side of the network's input.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from genvis.config import config
from genvis.devices import processes
from genvis.evaluation.extraction import metric_name
from genvis.evaluation.paired import SCORE
from genvis.features.clip import MEAN, STD
from genvis.images import to_uint8
from genvis.types import Cond

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = (MEAN, STD)
PREFIX = "A photo depicts "
ROWS = 32  # images in one pass


@dataclass(frozen=True)
class Prepare:
    """Pixels (B, 3, H, W) uint8 to the network's input (B, 3, S, S), float32."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    square: bool = False  # both sides to `size`, whatever the shape, instead of cutting the middle

    def __call__(self, pixels: Tensor) -> Tensor:
        values = np.stack([self._one(image) for image in pixels.permute(0, 2, 3, 1).cpu().numpy()])
        x = torch.from_numpy(values).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (self.mean, self.std))
        return (x - mean) / std

    def _one(self, pixels: np.ndarray) -> np.ndarray:
        height, width, _ = pixels.shape
        short = min(height, width)
        sides = (
            (self.size, self.size)
            if self.square
            else (
                width * self.size // short,
                height * self.size // short,
            )
        )
        resized = np.asarray(Image.fromarray(pixels).resize(sides, Image.Resampling.BICUBIC))
        top, left = ((side - self.size) // 2 for side in resized.shape[:2])
        return resized[top : top + self.size, left : left + self.size]


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
        how = "square" if self.prepare.square else "short side and centre"
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
        prepare = Prepare(self.size, *IMAGENET, square=True)
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
            net, Prepare(self.size, *CLIP), _image_embedding, self.name, weights_sha256(self.path)
        )


@config
class CLIPScore:
    """100 cos(image, prompt), as papers on generation have it; `captions`: 2.5 max(cos, 0) of the
    prompt with a prefix, as Hessel et al. do. The model is in the metric's name.
    """

    path: str
    name: str = "clip"
    size: int = 224
    captions: bool = False

    def __post_init__(self) -> None:
        _check_size(self.size)

    def build(self) -> "ClipScorer":
        net, tokenizer = load_local("CLIPModel", self.path), load_local("CLIPTokenizer", self.path)
        return ClipScorer(net.to(processes().device), tokenizer, self, weights_sha256(self.path))


@dataclass(frozen=True)
class ClipScorer:
    """Looks at images with their prompts; ValueError where there are none."""

    net: Any
    tokenizer: Any
    config: CLIPScore
    sha256: str

    @property
    def identity(self) -> dict[str, Any]:
        known = self.config
        return {"clip": self.sha256, "size": known.size, "captions": known.captions}

    def __call__(self, pixels: Tensor, cond: Cond, rows: range) -> dict[str, Tensor]:
        if cond.prompts is None:
            raise ValueError("clip_score needs images with prompts")
        device = processes().device
        prefix = PREFIX if self.config.captions else ""
        texts = [prefix + prompt for prompt in cond.prompts]
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        inputs = Prepare(self.config.size, *CLIP)(pixels[: len(texts)])
        with torch.no_grad():
            seen = self.net(pixel_values=inputs.to(device), **tokens.to(device))
        a, b = (F.normalize(x.double(), dim=1) for x in (seen.image_embeds, seen.text_embeds))
        cosine = (a * b).sum(1).cpu()
        value = 2.5 * cosine.clamp(min=0) if self.config.captions else 100 * cosine
        kind = "CLIPScore-captions" if self.config.captions else "CLIPScore"
        return {SCORE + metric_name(kind, self.config.name, self.sha256): value}


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
