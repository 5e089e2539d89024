"""Networks of images and words, and CLIP's: a shipped one, or the user's own files.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
Supervision". Nothing is downloaded.
Letters: B rows, E width of the shared space, S side of the network's input.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from genvis.checkpoint import file_sha256, load_state, load_tensors, read_json
from genvis.config import config
from genvis.features import PAIRED
from genvis.features.classifier import SHIPPED
from genvis.features.clip_net import (
    CLIPConfig,
    CLIPNet,
    from_open_clip,
    official_config,
    open_clip_config,
)
from genvis.features.clip_tokens import CLIPTokenizer
from genvis.features.prepare import Fit, Prepare

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
WHERE = "a folder of CLIPModel as save_pretrained writes it: config.json, model.safetensors"
OPEN_CLIP = "open_clip_config.json"
OPEN_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


class ImagesAndWords(Protocol):
    """Images and words as unit vectors in one space; all of `clip_score`'s networks are this."""

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def prepare(self) -> Prepare: ...
    @property
    def scale(self) -> Tensor:
        """What logits multiply cosines with."""
        ...

    def to(self, device: torch.device | str) -> Self: ...
    def seen(self, x: Tensor) -> Tensor:
        """Prepared images (B, 3, S, S) -> (B, E) of length one, with gradients."""
        ...

    def images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, E) of length one, with gradients."""
        ...

    def text(self, prompt: str) -> Tensor:
        """(E,) of length one. ValueError for more tokens than fit, and without a tokenizer."""
        ...


@dataclass(frozen=True)
class CLIP:
    """A network with its tokenizer: images in [-1, 1] and words in, unit vectors (B, E) out."""

    net: CLIPNet
    tokenizer: CLIPTokenizer | None
    name: str
    sha256: str
    prepare: Prepare

    @classmethod
    def from_folder(cls, path: str | Path, tokenizer: str | Path | None = None) -> Self:
        """From a local folder as `CLIPModel.save_pretrained` writes it; its tokenizer's two files
        there too, or in the folder `tokenizer`. Without them only images are understood.

        ValueError for a missing file, or weights that do not fit.
        """
        path = Path(path)
        if not (path / "config.json").is_file():
            raise ValueError(f"{path}: no config.json there; needed is {WHERE}")
        file = _first(path, WEIGHTS)
        state = read_state(file)
        net = official_config(read_json(path / "config.json")).build()
        return cls._of(net, state, file, CLIPTokenizer.find(path, tokenizer))

    @classmethod
    def from_open_clip(
        cls,
        file: str | Path,
        config: CLIPConfig,
        tokenizer: str | Path | None = None,
        prepare: Prepare | None = None,
    ) -> Self:
        """From a checkpoint of open_clip's layout, as `from_folder`."""
        state = from_open_clip(read_state(file))
        words = None if tokenizer is None else CLIPTokenizer.from_folder(tokenizer)
        return cls._of(config.build(), state, Path(file), words, prepare)

    @classmethod
    def _of(
        cls,
        net: CLIPNet,
        state: dict[str, Tensor],
        file: Path,
        tokenizer: CLIPTokenizer | None,
        prepare: Prepare | None = None,
    ) -> Self:
        constants = "embeddings.position_ids"  # 0, 1, 2, ..., which older files hold
        load_state(net, {k: v for k, v in state.items() if not k.endswith(constants)}, str(file))
        net.eval().requires_grad_(False)
        name = file.parent.name if file.name in (*WEIGHTS, *OPEN_WEIGHTS) else file.stem
        return cls(net, tokenizer, name, file_sha256(file), prepare or Prepare(net.config.size))

    @property
    def device(self) -> torch.device:
        return self.net.logit_scale.device

    @property
    def scale(self) -> Tensor:
        """What logits multiply cosines with."""
        return self.net.logit_scale.exp()

    def to(self, device: torch.device | str) -> Self:
        return replace(self, net=self.net.to(device))

    def seen(self, x: Tensor) -> Tensor:
        """Prepared images (B, 3, S, S) -> (B, E) of length one, with gradients."""
        return F.normalize(self.net.images(x), dim=1)

    def images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, E) of length one, with gradients."""
        return self.seen(self.prepare.floating(images))

    def text(self, prompt: str) -> Tensor:
        """(E,) of length one. ValueError for more tokens than fit."""
        if self.tokenizer is None:
            raise ValueError(
                f"CLIP {self.name}: no vocab.json and merges.txt, which prompts need; put them "
                "beside its weights"
            )
        ids = self.tokenizer([prompt], self.net.config.context).to(self.device)
        return F.normalize(self.net.texts(ids), dim=1)[0]


@config
class CLIPFolder:
    """As `CLIPModel.save_pretrained` writes it, or a shipped one by name (`shapes-clip-v1`)."""

    path: str
    tokenizer: str | None = None

    def build(self) -> CLIP:
        return CLIP.from_folder(local(self.path), self.tokenizer)


@config
class OpenCLIPFolder:
    """As open_clip's are on the hub: open_clip_config.json, open_clip_model.safetensors (or
    open_clip_pytorch_model.bin), vocab.json and merges.txt. ViTs with CLIP's own text tower.
    """

    path: str
    tokenizer: str | None = None

    def build(self) -> CLIP:
        folder = Path(self.path)
        given = read_json(folder / OPEN_CLIP)
        net = open_clip_config(given.get("model_cfg", {}))
        seen = given.get("preprocess_cfg", {})
        known = {name: tuple(seen[name]) for name in ("mean", "std") if name in seen}
        fit: Fit = "square" if seen.get("resize_mode") == "squash" else "crop"
        words = self.tokenizer or (folder if CLIPTokenizer.find(folder, None) else None)
        prepare = Prepare(net.size, fit=fit, **known)
        return CLIP.from_open_clip(_first(folder, OPEN_WEIGHTS), net, words, prepare)


def images_and_words(source: str, tokenizer: str | None = None) -> ImagesAndWords:
    """A shipped network by name, or one from a local folder of CLIP, SigLIP or open_clip, known by
    its files. ValueError for anything else: nothing is downloaded.
    """
    folder = local(source)
    if not (folder / "config.json").is_file() and (folder / OPEN_CLIP).is_file():
        name = "open_clip"
    elif (folder / "config.json").is_file():
        name = read_json(folder / "config.json").get("model_type", "clip")
    else:
        raise ValueError(
            f"{source}: no config.json there; needed is {WHERE}, or one of {OPEN_CLIP}"
        )
    if name not in PAIRED:
        raise ValueError(f"{source}: holds a {name!r}, expected one of {', '.join(PAIRED)}")
    words = {} if tokenizer is None else {"tokenizer": tokenizer}
    return PAIRED.build({"name": name, "path": str(folder), **words}).build()


def local(source: str | Path) -> Path:
    """The folder of a shipped network, by its name; any other path as it is."""
    shipped = SHIPPED / str(source)
    return shipped if len(Path(source).parts) == 1 and shipped.is_dir() else Path(source)


def _first(folder: Path, names: tuple[str, ...]) -> Path:
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise ValueError(f"{folder}: neither {' nor '.join(names)} there; needed is {WHERE}")
    return file


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
