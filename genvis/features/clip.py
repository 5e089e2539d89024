"""CLIP as images and words go in: preparation, tokens, and a network from the user's own files.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
Supervision". Nothing is downloaded.
Letters: B rows, E width of the shared space, S side of the network's input.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from genvis.checkpoint import file_sha256, load_state, load_tensors, read_json
from genvis.features.clip_net import CLIPConfig, CLIPNet, from_open_clip, official_config
from genvis.features.clip_tokens import CLIPTokenizer

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
WHERE = "a folder of CLIPModel as save_pretrained writes it: config.json, model.safetensors"

Fit = Literal["crop", "pad"]


def prepare(images: Tensor, size: int, fit: Fit = "crop") -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] to CLIP's input (B, 3, S, S), with gradients.

    Bicubic and antialiased, as published pipelines do it in 8 bits, here without rounding. crop:
    the short side to S, then the middle; pad: the long side to S, then black around it.
    """
    sides = images.shape[-2:]
    if fit == "crop":
        to = tuple(side * size // min(sides) for side in sides)
    else:
        to = tuple(round(side * size / max(sides)) for side in sides)
    x = F.interpolate(images, to, mode="bicubic", antialias=True).clamp(-1, 1)
    x = (_middle if fit == "crop" else _framed)((x + 1) / 2, size)
    mean, std = (x.new_tensor(each).view(-1, 1, 1) for each in (MEAN, STD))
    return (x - mean) / std


def _middle(x: Tensor, size: int) -> Tensor:
    top, left = ((side - size) // 2 for side in x.shape[-2:])
    return x[..., top : top + size, left : left + size]


def _framed(x: Tensor, size: int) -> Tensor:
    short = [size - side for side in x.shape[-2:]]
    (top, left), (bottom, right) = ([s // 2 for s in short], [s - s // 2 for s in short])
    return F.pad(x, (left, right, top, bottom))


@dataclass(frozen=True)
class CLIP:
    """A network with its tokenizer: images in [-1, 1] and words in, unit vectors (B, E) out."""

    net: CLIPNet
    tokenizer: CLIPTokenizer | None
    name: str
    sha256: str
    fit: Fit = "crop"

    @classmethod
    def from_folder(cls, path: str | Path, tokenizer: str | Path | None = None) -> Self:
        """From a local folder as `CLIPModel.save_pretrained` writes it; its tokenizer's two files
        there too, or in the folder `tokenizer`. Without them only images are understood.

        ValueError for a missing file, or weights that do not fit.
        """
        path = Path(path)
        if not (path / "config.json").is_file():
            raise ValueError(f"{path}: no config.json there; needed is {WHERE}")
        file = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
        if file is None:
            raise ValueError(f"{path}: neither {' nor '.join(WEIGHTS)} there; needed is {WHERE}")
        state = read_state(file)
        net = official_config(read_json(path / "config.json")).build()
        return cls._of(net, state, file, CLIPTokenizer.find(path, tokenizer))

    @classmethod
    def from_open_clip(
        cls,
        file: str | Path,
        config: CLIPConfig,
        tokenizer: str | Path | None = None,
        fit: Fit = "crop",
    ) -> Self:
        """From a checkpoint of open_clip's layout, as `from_folder`."""
        state = from_open_clip(read_state(file))
        words = None if tokenizer is None else CLIPTokenizer.from_folder(tokenizer)
        return cls._of(config.build(), state, Path(file), words, fit)

    @classmethod
    def _of(
        cls,
        net: CLIPNet,
        state: dict[str, Tensor],
        file: Path,
        tokenizer: CLIPTokenizer | None,
        fit: Fit = "crop",
    ) -> Self:
        constants = "embeddings.position_ids"  # 0, 1, 2, ..., which older files hold
        load_state(net, {k: v for k, v in state.items() if not k.endswith(constants)}, str(file))
        net.eval().requires_grad_(False)
        name = file.parent.name if file.name in WEIGHTS else file.stem
        return cls(net, tokenizer, name, file_sha256(file), fit)

    @property
    def device(self) -> torch.device:
        return self.net.logit_scale.device

    @property
    def scale(self) -> Tensor:
        """What logits multiply cosines with."""
        return self.net.logit_scale.exp()

    def to(self, device: torch.device | str) -> Self:
        return replace(self, net=self.net.to(device))

    def images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, E) of length one, with gradients."""
        return F.normalize(self.net.images(prepare(images, self.net.config.size, self.fit)), dim=1)

    def text(self, prompt: str) -> Tensor:
        """(E,) of length one. ValueError for more tokens than fit."""
        if self.tokenizer is None:
            raise ValueError(f"CLIP {self.name} was loaded without vocab.json and merges.txt")
        ids = self.tokenizer([prompt], self.net.config.context).to(self.device)
        return F.normalize(self.net.texts(ids), dim=1)[0]


def read_state(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or one of `torch.save`, also under `state_dict`."""
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"{file}: no such weight file, and nothing is downloaded")
    if file.suffix == ".safetensors":
        return load_tensors(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged pickle raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file}: truncated, or not a file of tensors: {reason}") from error
    state = state.get("state_dict", state) if isinstance(state, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{file}: holds no tensors by name")
    return {name.removeprefix("module."): value for name, value in state.items()}
