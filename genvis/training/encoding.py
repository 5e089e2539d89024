"""Encode a dataset once: shards of latents, resumable, by any number of processes, the same
whichever made them.
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
from torch import Tensor
from torch.utils.data import DataLoader

from genvis.checkpoint import atomic_write, in_use, load_tensors, open_run
from genvis.config import config, dump
from genvis.console import progress
from genvis.data import DATASETS
from genvis.data.latents import MANIFEST, check_origin, identity, save_shard, shard_path
from genvis.devices import processes
from genvis.tokenizers import TOKENIZERS
from genvis.tokenizers.scaled import measure
from genvis.types import Batch, Dataset, DatasetConfig, Moments, Tokenizer, TokenizerConfig

Captions = list[tuple[str, ...]] | None  # all that each image has


@config
class Encoding:
    """flips are encoded where the data has them (view.flip); the view must not be random."""

    data: Annotated[DatasetConfig, DATASETS]
    tokenizer: Annotated[TokenizerConfig, TOKENIZERS]
    splits: tuple[str, ...] = ("train", "val")
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    shard: int = 4096  # examples in a file
    batch: int = 64  # images in one call of the tokenizer

    def __post_init__(self) -> None:
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

    workers: processes that load data. ValueError for latents that are not finite, for a folder of
    another encoding, for a dataset that looks different every time.
    """
    state = processes()
    tokenizer = encoding.tokenizer.build().eval()
    plain = json.dumps(DATASETS.dump(encoding.data), sort_keys=True)
    origin = {
        "tokenizer": identity(tokenizer),
        "data": hashlib.sha256(plain.encode()).hexdigest(),
    }
    splits = {split: encoding.data.build(split) for split in encoding.splits}
    for data in splits.values():
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
    tokenizer: Tokenizer
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
        tensors = {"index": torch.tensor(rows), **self._moments(images, rows, "")}
        if self.flip:
            tensors |= self._moments(images.flip(-1), rows, "_flip")
        if batch.cond.label is not None:
            tensors["label"] = batch.cond.label
        return tensors, captions

    def _moments(self, images: Tensor, rows: range, side: str) -> dict[str, Tensor]:
        encoded = self.tokenizer.encode(images)
        if not isinstance(encoded, Moments):
            raise ValueError(f"the tokenizer encodes to {type(encoded).__name__}, not to Moments")
        dtype = getattr(torch, self.encoding.dtype)
        tensors = {f"mean{side}": encoded.mean, f"std{side}": encoded.std}
        found = {
            name: value.to(dtype).cpu() for name, value in tensors.items() if value is not None
        }
        for name, value in found.items():
            bad = (~value.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
            if bad:
                raise ValueError(
                    f"{self.folder.name}: {name} of example {rows[bad[0]]} is not finite in "
                    f"{self.encoding.dtype} ({len(bad)} of {len(rows)} beside it): a broken "
                    "tokenizer, or latents too large for dtype"
                )
        return found

    def finish(self) -> None:
        """Check every shard, measure the latents, and write the manifest."""
        mean, std = measure(self._read(number) for number in range(len(self.shards)))
        manifest = {
            "origin": self.origin,
            "examples": len(self.data),
            "shard": self.encoding.shard,
            "shape": list(self._read(0).mean.shape[1:]),
            "dtype": self.encoding.dtype,
            "flip": self.flip,
            "mean": mean,  # of each channel, over samples
            "std": std,
            "left_out": list(getattr(self.data, "left_out", ())),
        }
        atomic_write(self.folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")

    def _read(self, number: int) -> Moments:
        path = shard_path(self.folder, number)
        check_origin(path, self.origin, number)
        tensors = load_tensors(path)
        return Moments(tensors["mean"], tensors.get("std"))


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
