"""Encode a dataset once: shards of latents or tokens, resumable, by any number of processes, the
same whichever made them.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.data import DataLoader

from genvis.checkpoint import atomic_write, in_use, load_tensors, open_run
from genvis.config import config, dump
from genvis.console import progress
from genvis.data import DATASETS
from genvis.data.latents import (
    FLIP,
    MANIFEST,
    check_images,
    check_origin,
    identity,
    packed,
    save_shard,
    shard_path,
    unpacked,
)
from genvis.devices import processes
from genvis.tokenizers import TOKENIZERS
from genvis.tokenizers.scaled import measure
from genvis.types import Batch, Dataset, DatasetConfig, Moments, Pyramid, TokenizerConfig

Captions = list[tuple[str, ...]] | None  # all that each image has


@config
class Encoding:
    """flips are encoded where the data has them (view.flip); the view must not be random."""

    data: Annotated[DatasetConfig, DATASETS]
    tokenizer: Annotated[TokenizerConfig, TOKENIZERS]
    splits: tuple[str, ...] = ("train", "val")
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"  # tokens are int32
    shard: int = 4096  # examples in a file
    batch: int = 64  # images in one call of the tokenizer

    def __post_init__(self) -> None:
        if not self.splits:
            raise ValueError("splits must name at least one")
        if min(self.shard, self.batch) < 1:
            raise ValueError(
                f"shard and batch must be at least 1, got {self.shard} and {self.batch}"
            )
        if self.shard % self.batch:
            raise ValueError(
                f"shard must be a multiple of batch, got {self.shard} and {self.batch}"
            )


@torch.no_grad()
def encode(encoding: Encoding, folder: str | Path, workers: int = 0) -> Path:
    """Make every shard that is not there yet, then each split's manifest; see `data.latents`.

    workers: processes that load data. ValueError for latents that are not finite, tokens that no
    code has, a folder of another encoding, a dataset that looks different every time.
    """
    state = processes()
    tokenizer = encoding.tokenizer.build().eval()
    _sound(tokenizer)
    plain = json.dumps(DATASETS.dump(encoding.data), sort_keys=True)
    origin = {
        "tokenizer": identity(tokenizer),
        "data": hashlib.sha256(plain.encode()).hexdigest(),
    }
    splits = {split: encoding.data.build(split) for split in encoding.splits}
    for data in splits.values():
        check_images(data)
        _one_view(data)
    examples = {split: len(data) for split, data in splits.items()}
    with state.main_process_first():
        folder = open_run(folder, {**dump(encoding), "origin": origin, "examples": examples})
    tokenizer = tokenizer.to(state.device)
    with in_use(folder) if state.is_main_process else nullcontext():
        for split, data in splits.items():
            part = _Part(encoding, tokenizer, data, folder / split, origin)
            if not (part.folder / MANIFEST).exists():
                part.encode(state, workers)
                state.wait_for_everyone()
                if state.is_main_process:
                    part.finish()
            state.wait_for_everyone()
    return folder


def _sound(tokenizer: nn.Module) -> None:
    """Tokens do not show it, so weights are looked at."""
    for name, weight in tokenizer.state_dict().items():
        if not weight.isfinite().all():
            raise ValueError(f"the tokenizer is broken: its {name} is not finite")


def _one_view(data: Dataset) -> None:
    view = getattr(data, "view", None)
    if view is not None and view.random:
        raise ValueError(
            f"data.view.crop {view.crop} is random, but latents are of one crop: take adm or edm"
        )


@dataclass(frozen=True)
class _Part:
    """One split on its way into its folder."""

    encoding: Encoding
    tokenizer: Any  # a Tokenizer or a ScaleTokenizer
    data: Dataset
    folder: Path
    origin: dict[str, str]

    @property
    def flip(self) -> bool:
        view = getattr(self.data, "view", None)
        return view is not None and view.flip

    @property
    def shards(self) -> list[range]:
        """The rows of every shard."""
        rows = range(len(self.data))
        return [rows[i : i + self.encoding.shard] for i in rows[:: self.encoding.shard]]

    def encode(self, state: PartialState, workers: int) -> None:
        """This process's shards, as far as they are not there."""
        numbers = range(len(self.shards))[state.process_index :: state.num_processes]
        missing = [k for k in numbers if not shard_path(self.folder, k).exists()]
        batches = self._batches([rows for k in missing for rows in self._chunks(k)], workers)
        for k in progress(missing, f"encode {self.folder}", show=state.is_main_process):
            chunks = [self._encoded(rows, *next(batches), state.device) for rows in self._chunks(k)]
            names = chunks[0][0]
            tensors = {name: torch.cat([chunk[name] for chunk, _ in chunks]) for name in names}
            captions = [said for _, captions in chunks for said in captions or ()]
            save_shard(self.folder, k, tensors, captions or None, self.origin)

    def _chunks(self, shard: int) -> list[range]:
        rows, size = self.shards[shard], self.encoding.batch
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def _batches(self, chunks: list[range], workers: int) -> Iterator[tuple[Batch, Captions]]:
        loader: DataLoader[Any] = DataLoader(
            _Examples(self.data),  # type: ignore[arg-type]
            batch_size=None,
            sampler=chunks,
            num_workers=workers,
            generator=torch.Generator(),
        )
        return iter(loader)

    def _encoded(
        self, rows: range, batch: Batch, captions: Captions, device: torch.device
    ) -> tuple[dict[str, Tensor], Captions]:
        images = batch.x.to(device)
        tensors = {"index": torch.tensor(rows), **self._packed(images, rows, "")}
        if self.flip:
            tensors |= self._packed(images.flip(-1), rows, FLIP)
        if batch.cond.label is not None:
            tensors["label"] = batch.cond.label
        return tensors, captions

    def _packed(self, images: Tensor, rows: range, side: str) -> dict[str, Tensor]:
        encoded = self.tokenizer.encode(images)
        if not isinstance(encoded, Moments | Pyramid):
            kind = type(encoded).__name__
            raise ValueError(f"the tokenizer encodes to {kind}, not to Moments or a Pyramid")
        kept = packed(encoded, getattr(torch, self.encoding.dtype))
        found = {f"{name}{side}": value.cpu() for name, value in kept.items()}
        for name, value in found.items():
            fine, rule = self._rule(value)
            bad = (~fine.flatten(1).all(1)).nonzero().flatten().tolist()
            if bad:
                raise ValueError(
                    f"{self.folder.name}: {name} of example {rows[bad[0]]} is not {rule}; "
                    f"{len(bad)} of the {len(rows)} encoded with it are not"
                )
        return found

    def _rule(self, value: Tensor) -> tuple[Tensor, str]:
        """Where the rule is kept that every number must keep."""
        if value.is_floating_point():
            why = "a broken tokenizer, or latents too large for dtype"
            return value.isfinite(), f"finite in {self.encoding.dtype} ({why})"
        codes = self.tokenizer.num_codes
        return (value >= 0) & (value < codes), f"one of {codes} codes (a broken tokenizer)"

    def finish(self) -> None:
        """Check every shard, measure the latents, and write the manifest."""
        manifest = {
            "origin": self.origin,
            "examples": len(self.data),
            "shard": self.encoding.shard,
            "flip": self.flip,
            **self._measured(),
            "left_out": list(getattr(self.data, "left_out", ())),
        }
        atomic_write(self.folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")

    def _measured(self) -> dict[str, Any]:
        """Of moments the mean and std of each channel, over samples; of tokens how many of the
        codes each scale uses.
        """
        first, shards = self._read(0), (self._read(k) for k in range(len(self.shards)))
        if isinstance(first, Moments):
            mean, std = measure(shards)
            shape, dtype = list(first.mean.shape[1:]), self.encoding.dtype
            return {"shape": shape, "dtype": dtype, "mean": mean, "std": std}
        used: list[set[int]] = [set() for _ in first]
        for shard in shards:
            for found, tokens in zip(used, shard, strict=True):
                found.update(tokens.unique().tolist())
        return {"tokens": [t.shape[1] for t in first], "used": [len(found) for found in used]}

    def _read(self, number: int) -> Any:
        """The `Moments` of a shard, or its tokens of every scale."""
        path = shard_path(self.folder, number)
        check_origin(path, self.origin, number)
        return unpacked(load_tensors(path))


@dataclass(frozen=True)
class _Examples:
    """A map from rows to a batch and its captions, which is what loader processes need."""

    data: Dataset

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, rows: range) -> tuple[Batch, Captions]:
        batch = self.data[rows]
        if hasattr(self.data, "captions"):
            return batch, self.data.captions(rows)
        said = batch.cond.prompts
        return batch, None if said is None else [(text,) for text in said]
