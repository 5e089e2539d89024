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
from genvis.console import prompt_lines
from genvis.devices import processes
from genvis.evaluation.sources import Making
from genvis.images import to_uint8
from genvis.models import fingerprint, model_folder
from genvis.quant.execution import Execution
from genvis.samplers.base import BaseGenerator, load_generator
from genvis.samplers.folder import Sampling
from genvis.samplers.generate import generate, in_turn
from genvis.types import Cond, Sampler


@config
class Run:
    """A run folder, a model folder or a hub id; labels go round, or are the given classes, and so
    do the lines of a text file of prompts. execution: the kernels that run a quantized model.
    """

    path: str
    classes: tuple[int, ...] | None = None
    prompts: str | None = None
    negative: str | None = None
    trust_code: bool = False
    execution: Execution | None = None

    def open(self, making: Making, chunk: int) -> "Generated":
        generator = load_generator(self.path, trust_code=self.trust_code)
        sampling = Sampling(
            sampler=generator.choice(making.sampler),
            count=making.count,
            seed=making.seed,
            classes=self.classes,
            prompts=None if self.prompts is None else prompt_lines(self.prompts),
            negative=self.negative,
            chunk=chunk,
        )
        weights = Path(model_folder(self.path)) / "model.safetensors"
        size = weights.stat().st_size if weights.exists() else None
        source = fingerprint(self.path)
        if self.execution is not None:
            generator = generator.to(processes().device)
            generator = generator.having(self.execution.apply(generator.backbone))
            source = f"{source} on {dump(self.execution)}"
        return Generated(generator, sampling, source, size)


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
    def said(self) -> tuple[str, ...] | None:
        return self.sampling.prompts

    @property
    def identity(self) -> dict[str, Any]:
        return {"model": self.source, **dump(self.sampling)}

    def read(self, rows: range) -> tuple[Tensor, Cond]:
        cond = in_turn(self._things, rows)
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
        return self._here.sampler(self.sampling.sampler)

    @cached_property
    def _things(self) -> Cond:
        return self.sampling.things(self._here)

    @cached_property
    def _here(self) -> BaseGenerator:
        return self.generator.to(processes().device)
