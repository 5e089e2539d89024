"""Images as a generator makes them, by number: nothing is stored, row i is the same in any chunk.

Letters: B images.
"""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from genvis.config import config, dump
from genvis.devices import processes
from genvis.evaluation.sources import Making
from genvis.images import to_uint8
from genvis.models import fingerprint, model_folder
from genvis.samplers.base import BaseGenerator, load_generator
from genvis.samplers.folder import Sampling
from genvis.samplers.generate import generate
from genvis.types import Cond, Sampler


@config
class Run:
    """A run folder, a model folder or a hub id; labels go round, or are the given classes."""

    path: str
    classes: tuple[int, ...] | None = None
    trust_code: bool = False

    def open(self, making: Making, chunk: int) -> "Generated":
        generator = load_generator(self.path, trust_code=self.trust_code)
        sampling = Sampling(
            sampler=generator.choice(making.sampler),
            count=making.count,
            seed=making.seed,
            classes=self.classes,
            chunk=chunk,
        )
        weights = Path(model_folder(self.path)) / "model.safetensors"
        size = weights.stat().st_size if weights.exists() else None
        return Generated(generator, sampling, fingerprint(self.path), size)


@dataclass(frozen=True)
class Generated:
    """`source` identifies the weights; `bytes`: of their file, None for a model of the hub."""

    generator: BaseGenerator
    sampling: Sampling
    source: str
    bytes: int | None = None

    def __len__(self) -> int:
        return self.sampling.count

    @property
    def seed(self) -> int:
        return self.sampling.seed

    @property
    def identity(self) -> dict[str, Any]:
        return {"model": self.source, **dump(self.sampling)}

    def read(self, rows: range) -> tuple[Tensor, Cond]:
        cond = self.sampling.cond(rows, self.generator.num_classes)
        keys = self.sampling.keys(rows)
        return to_uint8(generate(self._sampler, cond, keys, self.sampling.chunk)), cond

    def seconds(self, repeats: int = 3) -> float:
        """An image's time on this machine: the median over chunks, after one that warms up."""
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            self.read(range(self.sampling.chunk))
            times.append(time.perf_counter() - start)
        return median(times[1:]) / self.sampling.chunk

    @cached_property
    def _sampler(self) -> Sampler:
        return self.generator.to(processes().device).sampler(self.sampling.sampler)
