"""Captions as data: what a frozen text encoder makes of a dataset's captions, encoded once
(`training.embedding`), so that training never runs the encoder.

A folder holds shards `texts-00012.safetensors` of equal numbers of captions, and `manifest.json`
once all of them are there. A shard holds text (N, L, D), text_mask (N, L) and, of an encoder that
has it, pooled (N, E); the captions in its header. The first caption is the empty one: the null
prompt. Every shard says which encoder and which captions it is of.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from genvis.checkpoint import load_tensors, read_json, save_tensors
from genvis.config import config
from genvis.data import DATASETS
from genvis.data.captions import captions_of
from genvis.data.latents import read_header
from genvis.random import Keys
from genvis.types import Batch, Cond, Dataset, DatasetConfig

MANIFEST, HEADER = "manifest.json", "texts"
LEAVES = ("text", "text_mask", "pooled")  # of a `Cond`


@config
class EmbeddedConfig:
    """A dataset with captions, and the folder of their texts."""

    data: Annotated[DatasetConfig, DATASETS]
    folder: str

    def build(self, split: str) -> "Embedded":
        return Embedded(self.data.build(split), Texts(Path(self.folder)))


class Texts:
    """The texts of many captions."""

    def __init__(self, folder: Path) -> None:
        if not (folder / MANIFEST).is_file():
            raise ValueError(
                f"{folder}: has no {MANIFEST}: not a folder of encoded captions, or its encoding "
                "is not finished (run train_scripts/embed.py again)"
            )
        self.folder = folder
        manifest = read_json(folder / MANIFEST)
        self.identity: str = manifest["origin"]["text"]
        self.places: dict[str, tuple[int, int]] = {}
        for number in range(manifest["shards"]):
            said = check_shard(shard_path(folder, number), manifest["origin"])["captions"]
            self.places |= {caption: (number, row) for row, caption in enumerate(said)}
        self.opened: dict[int, dict[str, Tensor]] = {}

    def __call__(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """`LEAVES` of a `Cond`, (B, ...) each, features in float32. ValueError for a caption that
        was not encoded.
        """
        rows = [self._row(caption) for caption in captions]
        stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return {name: t.float() if t.is_floating_point() else t for name, t in stacked.items()}

    def place(self, caption: str) -> tuple[int, int]:
        """Its shard and row. ValueError if it was not encoded."""
        if caption not in self.places:
            raise ValueError(
                f"{self.folder}: the caption {caption!r} was not encoded: its texts are of other "
                "data (run train_scripts/embed.py for these)"
            )
        return self.places[caption]

    def _row(self, caption: str) -> dict[str, Tensor]:
        number, row = self.place(caption)
        if number not in self.opened:  # mapped from the file, not read
            self.opened[number] = load_tensors(shard_path(self.folder, number))
        return {name: tensor[row] for name, tensor in self.opened[number].items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "opened": {}}


class Embedded:
    """The dataset with `Cond.text` for its prompts, and the null prompt's as the negative."""

    def __init__(self, data: Dataset, texts: Texts) -> None:
        self.data, self.texts = data, texts
        self.null = texts([""])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        return self._told(self.data[indices])

    def augmented(self, indices: Sequence[int], keys: Keys) -> Batch:
        """As the dataset's own, where it has that."""
        own = getattr(self.data, "augmented", None)
        return self._told(self.data[indices] if own is None else own(indices, keys))

    def check(self, model: Any) -> None:
        """ValueError unless the model's text encoder made these texts, of all captions."""
        if hasattr(self.data, "check"):
            self.data.check(model)
        identity = getattr(getattr(model, "text", None), "identity", None)
        if identity is None:
            raise ValueError(
                f"{self.texts.folder}: encoded captions are for models whose text encoder is frozen"
            )
        if identity != self.texts.identity:
            raise ValueError(
                f"{self.texts.folder}: texts of another encoder than the model's "
                f"({self.texts.identity[:8]} here, {identity[:8]} there)"
            )
        if hasattr(self.data, "captions"):
            for caption in captions_of(self.data):
                self.texts.place(caption)

    def _told(self, batch: Batch) -> Batch:
        prompts = batch.cond.prompts
        if prompts is None:
            raise ValueError(f"{self.texts.folder}: the data have no captions")
        null = {name: t.expand(len(prompts), *t.shape[1:]) for name, t in self.null.items()}
        negative = Cond(prompts=("",) * len(prompts), **null)  # type: ignore[arg-type]
        told = replace(batch.cond, negative=negative, **self.texts(prompts))  # type: ignore[arg-type]
        return replace(batch, cond=told)


def captions_sha256(captions: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(captions)).encode()).hexdigest()


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"texts-{number:05d}.safetensors"


def save_shard(path: Path, texts: Cond, dtype: torch.dtype, origin: Mapping[str, str]) -> None:
    """Whole or absent, and the same bytes for the same content."""
    leaves = {name: getattr(texts, name) for name in LEAVES}
    kept = {
        name: t.to(dtype) if t.is_floating_point() else t
        for name, t in leaves.items()
        if t is not None
    }
    about = {"origin": dict(origin), "captions": texts.prompts}
    save_tensors(path, kept, {HEADER: json.dumps(about)})


def check_shard(path: Path, origin: Mapping[str, str]) -> dict[str, Any]:
    """What a shard says of itself. ValueError naming it unless it is of these captions by this
    encoder.
    """
    about = read_header(path, HEADER)
    for part, name in {"text": "encoder", "captions": "captions"}.items():
        here, wanted = about["origin"][part], origin[part]
        if here != wanted:
            raise ValueError(f"{path}: of other {name} ({here[:8]} instead of {wanted[:8]})")
    return about
