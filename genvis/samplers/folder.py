"""Samples on disk: resumable, by any number of processes, the same whichever made them.

A sample folder holds `run.json` (what made it), `samples.npz` (ADM's format: arr_0 uint8 NHWC,
arr_1 labels), `prompts.json` (of every image, where there are) and `grid.png`; `parts/` holds
finished chunks until the last one is there.
"""

import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import torch
from accelerate import PartialState
from torch import Tensor

from genvis.checkpoint import atomic_write, in_use, open_run, read_json
from genvis.config import config, dump, first_difference
from genvis.console import progress
from genvis.devices import processes
from genvis.images import load_images, load_npz, save_grid, save_npz
from genvis.models import fingerprint
from genvis.random import HashKeys
from genvis.samplers import SAMPLERS
from genvis.samplers.base import BaseGenerator, SamplerChoice, check_negative
from genvis.samplers.generate import generate, in_turn, shown, trajectory
from genvis.types import Cond, Sampler, to

PROMPTS = "prompts.json"


@config
class Sampling:
    """Image i has label classes[i mod K] or prompt prompts[i mod P], and keys of (seed, i).

    negative: a prompt to steer away from, in guidance.
    """

    sampler: Annotated[SamplerChoice, SAMPLERS]
    count: int = 1000
    seed: int = 0
    classes: tuple[int, ...] | None = None  # default: all of them in turn
    prompts: tuple[str, ...] | None = None
    negative: str | None = None
    chunk: int = 64  # rows per network call

    def __post_init__(self) -> None:
        if min(self.count, self.chunk) < 1:
            raise ValueError(
                f"count and chunk must be at least 1, got {self.count} and {self.chunk}"
            )
        if self.classes == ():
            raise ValueError("classes must name at least one class, or be null for all of them")
        if self.prompts == ():
            raise ValueError("prompts must name at least one, or be null")

    def keys(self, rows: range) -> HashKeys:
        return HashKeys.of(self.seed, rows).fold("sample")

    def things(self, generator: BaseGenerator) -> Cond:
        """What images show in turn. ValueError for what the model is not told in, and for a
        negative prompt that changes nothing.
        """
        things = generator.things(self.classes, self.prompts, self.negative)
        check_negative(self.sampler, self.negative)
        return things


def sample_folder(
    generator: BaseGenerator, sampling: Sampling, folder: str | Path, source: str
) -> tuple[Tensor, Tensor | None]:
    """(images (N, 3, H, W), labels (N,) if the generator has classes) of a sample folder, made now
    as far as they are not there.

    `source` identifies the weights. Images come back from uint8, as a reader of the file would see
    them.
    """
    state = processes()
    final, sampler = Path(folder) / "samples.npz", None
    named = {name: fingerprint(name) for name in getattr(sampling.sampler, "others", ())}
    others = {"others": named} if named else {}  # a sample is of their weights too
    if not final.exists():
        generator = generator.to(state.device)
        sampler = generator.sampler(sampling.sampler)
        things = sampling.things(generator)  # what is wrong is said before any file is made
    with state.main_process_first():
        folder = open_run(folder, {"source": source, **others, **dump(sampling)})
    with in_use(folder) if state.is_main_process else nullcontext():
        if sampler is not None:
            _sample(sampler, things, sampling, folder, state)
        state.wait_for_everyone()
    return load_images(final)


def _sample(
    sampler: Sampler, things: Cond, sampling: Sampling, folder: Path, state: PartialState
) -> None:
    """This process's chunks, and then, by the main process, the whole."""
    starts = range(0, sampling.count, sampling.chunk)
    paths = {start: folder / "parts" / f"{start:09d}.npz" for start in starts}
    mine = starts[state.process_index :: state.num_processes]
    for start in progress(mine, f"sample {folder}", show=state.is_main_process):
        if paths[start].exists():
            continue
        here = range(sampling.count)[start : start + sampling.chunk]
        cond = in_turn(things, here)
        images = generate(sampler, cond, sampling.keys(here), sampling.chunk)
        save_npz(paths[start], images, cond.label)
    state.wait_for_everyone()
    if state.is_main_process:
        loaded = [load_images(path) for path in paths.values()]
        images = torch.cat([images for images, _ in loaded])
        labels = [labels for _, labels in loaded if labels is not None]
        columns = 10 if things.label is things.prompts is None else min(len(things), 10)
        save_grid(folder / "grid.png", images[: 10 * columns], columns)
        save_prompts(folder, shown(things, sampling.count).prompts)
        save_npz(folder / "samples.npz", images, torch.cat(labels) if labels else None)
        shutil.rmtree(folder / "parts")


@torch.no_grad()
def save_steps(generator: BaseGenerator, sampling: Sampling, path: Path) -> None:
    """A picture of how the first ten images come about: a row for every step, a scale or a time."""
    rows, generator = range(min(sampling.count, 10)), generator.to(processes().device)
    sampler, keys = generator.sampler(sampling.sampler), sampling.keys(rows)
    noise = keys.normal(sampler.noise_shape, sampler.device)
    cond = to(in_turn(sampling.things(generator), rows), sampler.device)
    save_grid(path, torch.cat([*trajectory(sampler, noise, cond, keys)]).cpu(), len(rows))


def save_prompts(folder: Path, prompts: Sequence[str] | None) -> None:
    """`prompts.json`, one for every image of `samples.npz`; no file for images without."""
    if prompts is not None:
        atomic_write(folder / PROMPTS, json.dumps(list(prompts), indent=0) + "\n")


def read_prompts(folder: Path) -> tuple[str, ...] | None:
    """What `save_prompts` wrote."""
    return tuple(read_json(folder / PROMPTS)) if (folder / PROMPTS).is_file() else None


def read_samples(source: str | Path) -> tuple[Tensor, Tensor]:
    """(images (N, 3, H, W) in [-1, 1], labels (N,)) of a sample folder or an `.npz` file."""
    source = Path(source)
    return load_npz(source / "samples.npz" if source.is_dir() else source)


def read_pairs(source: str | Path, against: str | Path) -> tuple[Tensor, Tensor, Tensor]:
    """(images, labels, images) that two models made of the same keys.

    ValueError if labels differ, or settings other than the model where both are sample folders.
    """
    (images, labels), (others, theirs) = read_samples(source), read_samples(against)
    if images.shape != others.shape or not torch.equal(labels, theirs):
        raise ValueError(f"{source} and {against}: not pairs: their labels or shapes differ")
    runs = [Path(folder) / "run.json" for folder in (source, against)]
    if all(run.exists() for run in runs):
        ours, other = ({**read_json(run)["config"], "source": None} for run in runs)
        difference = first_difference(ours, other)
        if difference:
            raise ValueError(f"{source} and {against}: not of the same keys: {difference}")
    return images, labels, others
