"""Any diffusers pipeline as a source of images for evaluation.

Every image has a generator of its own, seeded by (seed, i), as diffusers takes them in a list: what
a pipeline draws would else depend on the batch. Labels and prompts go round.
Letters: B images.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from genvis.checkpoint import file_sha256
from genvis.config import config, dump
from genvis.console import prompt_lines
from genvis.data.stores import Folder
from genvis.devices import processes
from genvis.evaluation.sources import Making
from genvis.images import to_uint8
from genvis.integrations.diffusers_models import load_pipeline
from genvis.random import stream
from genvis.types import Cond


@config
class Pipeline:
    """A pipeline's folder. call: further arguments of the pipeline, such as num_inference_steps;
    classes: how many labels it takes (as `class_labels`), prompts: a text file; both go round.
    """

    path: str
    call: dict[str, int | float | str | bool] = field(default_factory=dict)
    classes: int | None = None
    prompts: str | None = None

    def __post_init__(self) -> None:
        if self.classes is not None and self.prompts is not None:
            raise ValueError("a pipeline takes classes or prompts, not both")
        if self.classes is not None and self.classes < 1:
            raise ValueError(f"classes must be at least 1, got {self.classes}")

    def open(self, making: Making, chunk: int) -> "PipelineImages":
        if making.sampler is not None:
            raise ValueError("a pipeline has its own sampler: give its options in `call`")
        loaded = load_pipeline(self.path)
        lines = prompt_lines(self.prompts) if self.prompts else None
        return PipelineImages(loaded.to(processes().device), self, making, lines)


@dataclass(frozen=True)
class PipelineImages:
    pipeline: Any
    config: Pipeline
    making: Making
    prompts: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return self.making.count

    @property
    def seed(self) -> int:
        return self.making.seed

    @property
    def said(self) -> tuple[str, ...] | None:
        return self.prompts

    @cached_property
    def identity(self) -> dict[str, Any]:
        """With the hash of every file of the pipeline, and of the prompts."""
        texts = json.dumps(self.prompts).encode()
        files = {
            "files": folder_sha256(Path(self.config.path)),
            "texts": hashlib.sha256(texts).hexdigest(),
        }
        return {"pipeline": dump(self.config), **files, **dump(self.making)}

    def read(self, rows: range) -> tuple[Tensor, Cond]:
        cond, own = self._cond(rows)
        generators = [torch.Generator().manual_seed(self._seed(i)) for i in rows]
        size = {} if own else {"batch_size": len(rows)}
        given = {"generator": generators, "output_type": "np", **self.config.call, **own, **size}
        images = np.asarray(self.pipeline(**given).images)
        if images.shape[:1] != (len(rows),) or images.shape[3:] != (3,):
            raise ValueError(f"{self.config.path}: gave {images.shape}, not {len(rows)} RGB images")
        pixels = rearrange(torch.from_numpy(images).double(), "b h w c -> b c h w")
        return to_uint8(2 * pixels - 1), cond

    def _cond(self, rows: range) -> tuple[Cond, dict[str, Any]]:
        """What is known of the rows, and how the pipeline is told."""
        if self.prompts is not None:
            texts = [self.prompts[i % len(self.prompts)] for i in rows]
            return Cond(prompts=tuple(texts)), {"prompt": texts}
        if self.config.classes is not None:
            labels = [i % self.config.classes for i in rows]
            return Cond(label=torch.tensor(labels)), {"class_labels": labels}
        return Cond(), {}

    def _seed(self, row: int) -> int:
        return stream(self.making.seed, row) >> 1  # torch takes 63 bits


def folder_sha256(folder: Path) -> str:
    """Of all files of a folder with their names: weights, configs, vocabularies."""
    digest = hashlib.sha256()
    for name in Folder(str(folder)).names:
        digest.update(f"{name} {file_sha256(folder / name)}\n".encode())
    return digest.hexdigest()
