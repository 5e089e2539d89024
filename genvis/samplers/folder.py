"""Samples on disk: resumable, by any number of processes, the same whichever made them.

A sample folder holds `run.json` (what made it), `samples.npz` (ADM's format: arr_0 uint8 NHWC,
arr_1 labels) and `grid.png`; `parts/` holds finished chunks until the last one is there.
"""

import shutil
from pathlib import Path

import torch
from torch import Tensor

from genvis.checkpoint import open_run
from genvis.config import config, dump
from genvis.console import progress
from genvis.devices import processes
from genvis.images import load_npz, save_grid, save_npz
from genvis.random import HashKeys
from genvis.samplers.generate import generate
from genvis.samplers.generator import Generator, SamplerConfig
from genvis.types import Cond


@config
class Sampling:
    """Image i has label classes[i mod len(classes)] and keys of (seed, i)."""

    sampler: SamplerConfig
    count: int = 100
    seed: int = 0
    classes: tuple[int, ...] | None = None  # default: all of them in turn
    chunk: int = 64  # rows per network call

    def __post_init__(self) -> None:
        if min(self.count, self.chunk) < 1:
            raise ValueError(
                f"count and chunk must be at least 1, got {self.count} and {self.chunk}"
            )

    def keys(self, rows: range) -> HashKeys:
        return HashKeys.of(self.seed, rows).fold("sample")

    def cond(self, rows: range, num_classes: int) -> Cond:
        classes = range(num_classes) if self.classes is None else self.classes
        if not all(0 <= label < num_classes for label in classes):
            raise ValueError(f"classes must be in 0..{num_classes - 1}, got {list(classes)}")
        return Cond(label=torch.tensor([classes[i % len(classes)] for i in rows]))


def sample_folder(
    generator: Generator, sampling: Sampling, folder: str | Path, source: str
) -> tuple[Tensor, Tensor]:
    """(images (N, 3, H, W), labels (N,)) of a sample folder, made now as far as they are not there.

    `source` identifies the weights. Images come back from uint8, as a reader of the file would see
    them.
    """
    state = processes()
    rows = range(sampling.count)
    classes = generator.config.backbone.num_classes
    sampling.cond(rows, classes)  # refuses bad classes before any file is made
    with state.main_process_first():
        folder = open_run(folder, {"source": source, **dump(sampling)})
    final, parts = folder / "samples.npz", folder / "parts"
    if not final.exists():
        starts = range(0, sampling.count, sampling.chunk)
        mine = starts[state.process_index :: state.num_processes]
        sampler = generator.to(state.device).sampler(sampling.sampler)
        for start in progress(mine, f"sample {folder}", show=state.is_main_process):
            part = parts / f"{start:09d}.npz"
            if part.exists():
                continue
            here = rows[start : start + sampling.chunk]
            cond = sampling.cond(here, classes)
            assert cond.label is not None
            save_npz(part, generate(sampler, cond, sampling.keys(here), sampling.chunk), cond.label)
        state.wait_for_everyone()
        if state.is_main_process:
            loaded = [load_npz(parts / f"{start:09d}.npz") for start in starts]
            images = torch.cat([images for images, _ in loaded])
            columns = min(len(sampling.classes or range(classes)), 10)
            save_grid(folder / "grid.png", images[: 10 * columns], columns)
            save_npz(final, images, torch.cat([labels for _, labels in loaded]))
            shutil.rmtree(parts)
        state.wait_for_everyone()
    return load_npz(final)


def read_samples(source: str | Path) -> tuple[Tensor, Tensor]:
    """(images (N, 3, H, W) in [-1, 1], labels (N,)) of a sample folder or an `.npz` file."""
    source = Path(source)
    return load_npz(source / "samples.npz" if source.is_dir() else source)
