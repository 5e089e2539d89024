"""Encode the captions of a dataset once: shards of texts, resumable, by any number of processes,
the same whichever made them.
"""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import torch

from genvis.checkpoint import atomic_write, in_use, open_run
from genvis.config import config, dump
from genvis.console import progress
from genvis.data import DATASETS
from genvis.data.captions import captions_of
from genvis.data.embedded import MANIFEST, captions_sha256, check_shard, save_shard, shard_path
from genvis.devices import processes
from genvis.text import TEXTS
from genvis.text.prompted import in_passes
from genvis.types import DatasetConfig, TextEncoderConfig


@config
class Embedding:
    """A frozen encoder, and the data whose captions it encodes, with all that an image has."""

    data: Annotated[DatasetConfig, DATASETS]
    text: Annotated[TextEncoderConfig, TEXTS]
    splits: tuple[str, ...] = ("train", "val")
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"  # of what is kept
    shard: int = 1024  # captions in a file
    batch: int = 16  # captions in one call of the encoder

    def __post_init__(self) -> None:
        if not self.splits:
            raise ValueError("splits must name at least one")
        if min(self.shard, self.batch) < 1:
            raise ValueError(
                f"shard and batch must be at least 1, got {self.shard} and {self.batch}"
            )


@torch.no_grad()
def embed(embedding: Embedding, folder: str | Path) -> Path:
    """Make every shard that is not there yet, then the manifest; see `data.embedded`.

    ValueError for an encoder that is trained, captions that it cannot take whole, texts that are
    not finite, a folder of another encoding.
    """
    state, text = processes(), embedding.text.build()
    identity = getattr(text, "identity", None)
    if identity is None:
        raise ValueError("an encoder that is trained with the generator has no texts to keep")
    splits = [embedding.data.build(split) for split in embedding.splits]
    captions = ["", *sorted({said for data in splits for said in captions_of(data)} - {""})]
    text.check(captions)
    origin = {"text": identity, "captions": captions_sha256(captions)}
    shards = [captions[i : i + embedding.shard] for i in range(0, len(captions), embedding.shard)]
    with state.main_process_first():
        folder = open_run(folder, {**dump(embedding), "origin": origin})
    with in_use(folder) if state.is_main_process else nullcontext():
        mine = range(state.process_index, len(shards), state.num_processes)
        for number in progress(mine, f"embed {folder}", show=state.is_main_process):
            path = shard_path(folder, number)
            if path.exists():
                continue
            found = in_passes(text, shards[number], embedding.batch)
            dtype = getattr(torch, embedding.dtype)
            if found.text is None or not found.text.to(dtype).isfinite().all():
                raise ValueError(f"{path}: texts are not finite in {embedding.dtype}")
            save_shard(path, found, dtype, origin)
        state.wait_for_everyone()
        if state.is_main_process:
            for number in range(len(shards)):
                check_shard(shard_path(folder, number), origin)
            manifest = {"origin": origin, "captions": len(captions), "shards": len(shards)}
            atomic_write(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    state.wait_for_everyone()
    return folder
