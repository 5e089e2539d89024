"""Latents as data: what a tokenizer makes of a dataset, encoded once (`training.encoding`).

A folder holds one folder a split: shards `latents-00012.safetensors` of equal numbers of examples,
and `manifest.json` once all of them are there. A shard holds mean (N, c, h, w) and, where the
tokenizer is stochastic, std, so that every step samples afresh, or tokens_k (N, n_k) of every scale
k; the same of the mirrored images under names that end in _flip (a mirrored latent is not the
latent of the mirrored image); label and index (N,); captions in its header. Every shard says which
tokenizer and which data it is of.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from genvis.checkpoint import load_tensors, read_json, save_tensors
from genvis.config import config, dump
from genvis.data.pictures import pick
from genvis.data.view import mirrored
from genvis.random import Keys
from genvis.types import Batch, Cond, Dataset, Moments, Pyramid, Tokenizer

MANIFEST, HEADER, FLIP = "manifest.json", "latents", "_flip"
ORIGIN = {"tokenizer": "tokenizer", "data": "transform or dataset"}  # what a shard is of


class Encoded(Protocol):
    """A model whose tokenizer made, or did not make, some latents."""

    @property
    def tokenizer(self) -> Tokenizer: ...


@config
class LatentsConfig:
    folder: str

    def build(self, split: str) -> "Latents":
        return Latents(Path(self.folder, split))


class Latents:
    """x is `Moments`, or the tokens of every scale, as encoding the dataset would give them; flips
    where they were encoded.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / MANIFEST).is_file():
            raise ValueError(
                f"{folder}: has no {MANIFEST}: not a split of encoded latents, or its encoding is "
                "not finished (run train_scripts/encode.py again)"
            )
        self.folder, self.manifest = folder, read_json(folder / MANIFEST)
        self.count, self.shard = int(self.manifest["examples"]), int(self.manifest["shard"])
        shards = -(-self.count // self.shard)
        self.paths = [shard_path(folder, number) for number in range(shards)]
        for number, path in enumerate(self.paths):
            check_origin(path, self.manifest["origin"], number)
        self.opened: dict[int, tuple[dict[str, Tensor], Any]] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        return self._batch(indices, [False] * len(indices), [0.0] * len(indices))

    def augmented(self, indices: Sequence[int], keys: Keys) -> Batch:
        """With the flips and captions that `Pictures` would choose for the same keys."""
        flips = mirrored(keys).tolist() if self.manifest["flip"] else [False] * len(indices)
        return self._batch(indices, flips, keys.fold("caption").uniform().tolist())

    def check(self, model: Encoded) -> None:
        """ValueError unless the model's tokenizer made these latents."""
        if not hasattr(model, "tokenizer"):
            raise ValueError(
                f"{self.folder}: encoded data are for generators, a {type(model).__name__} "
                "learns from images"
            )
        ours, theirs = self.manifest["origin"]["tokenizer"], identity(model.tokenizer)
        if ours != theirs:
            raise ValueError(
                f"{self.folder}: latents of another tokenizer than the model's ({ours[:8]} here, "
                f"{theirs[:8]} there)"
            )

    def _batch(
        self, indices: Sequence[int], flips: Sequence[bool], which: Sequence[float]
    ) -> Batch:
        rows: list[dict[str, Tensor]] = []
        labels: list[Tensor] = []
        prompts: list[str] = []
        for index, flip, u in zip(indices, flips, which, strict=True):
            tensors, captions = self._open(index // self.shard)
            row, side = index % self.shard, FLIP if flip else ""
            kept = [n for n in tensors if n not in ("index", "label") and not n.endswith(FLIP)]
            rows.append({name: tensors[name + side][row] for name in kept})
            labels += [tensors["label"][row]] if "label" in tensors else []
            prompts += [pick(captions[row], u)] if captions else []
        stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        label = torch.stack(labels) if labels else None
        cond = Cond(label=label, prompts=tuple(prompts) or None)
        return Batch(unpacked(stacked), cond)

    def _open(self, number: int) -> tuple[dict[str, Tensor], Any]:
        """A shard's tensors, mapped from the file and not read, and its captions."""
        if number not in self.opened:
            path = self.paths[number]
            self.opened[number] = load_tensors(path), read_header(path)["captions"]
        return self.opened[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "opened": {}}


def check_images(data: Dataset) -> None:
    """ValueError for data that are encoded already."""
    if isinstance(data, Latents):
        raise ValueError(f"{data.folder}: is encoded already, and images are needed here")


def packed(encoded: Moments | Pyramid, dtype: torch.dtype) -> dict[str, Tensor]:
    """What a shard keeps, by name: moments as `dtype`, tokens as int32."""
    if isinstance(encoded, Pyramid):
        return {f"tokens_{k}": tokens.int() for k, tokens in enumerate(encoded.tokens)}
    kept = {"mean": encoded.mean, "std": encoded.std}
    return {name: value.to(dtype) for name, value in kept.items() if value is not None}


def unpacked(tensors: Mapping[str, Tensor]) -> Moments | tuple[Tensor, ...]:
    """The moments in float32, or the tokens in int64, that were packed."""
    if "mean" in tensors:
        std = tensors["std"].float() if "std" in tensors else None
        return Moments(tensors["mean"].float(), std)
    names = [name for name in tensors if name.startswith("tokens_") and not name.endswith(FLIP)]
    return tuple(tensors[f"tokens_{k}"].long() for k in range(len(names)))


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"latents-{number:05d}.safetensors"


def save_shard(
    folder: Path,
    number: int,
    tensors: Mapping[str, Tensor],
    captions: list[tuple[str, ...]] | None,
    origin: Mapping[str, str],
) -> None:
    """Whole or absent, and the same bytes for the same content."""
    about = {"origin": dict(origin), "split": folder.name, "number": number, "captions": captions}
    # one key: the library writes several in any order
    save_tensors(shard_path(folder, number), tensors, {HEADER: json.dumps(about)})


def read_header(path: Path, of: str = HEADER) -> dict[str, Any]:
    """What a shard says of itself. ValueError if it is missing, damaged or no shard `of` these."""
    if not path.is_file():
        raise ValueError(f"{path}: no such shard")
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()[of])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: truncated, or not a shard of {of}: {error}") from error


def check_origin(path: Path, origin: Mapping[str, str], number: int) -> None:
    """ValueError naming the shard unless it is this part of this data by this tokenizer."""
    about = read_header(path)
    for part, name in ORIGIN.items():
        here, wanted = about["origin"][part], origin[part]
        if here != wanted:
            raise ValueError(f"{path}: of another {name} ({here[:8]} instead of {wanted[:8]})")
    if (about["split"], about["number"]) != (path.parent.name, number):
        raise ValueError(f"{path}: is shard {about['number']} of {about['split']}")


def identity(tokenizer: Any) -> str:
    """What tells a tokenizer's latents from others': the sha256 of its config and its tensors, but
    for the decoder's (`decoder_parameters`), which may be trained further while latents stay.
    """
    decoder: Iterable[Tensor] = getattr(tokenizer, "decoder_parameters", tuple)()
    free = {id(parameter) for parameter in decoder}
    known = hashlib.sha256(type(tokenizer).__qualname__.encode())
    known.update(json.dumps(dump(tokenizer.config), sort_keys=True).encode())
    for name, tensor in sorted(tokenizer.state_dict(keep_vars=True).items()):
        if id(tensor) not in free:
            plain = tensor.detach().cpu().contiguous()
            known.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
            known.update(plain.flatten().view(torch.uint8).numpy())
    return known.hexdigest()
