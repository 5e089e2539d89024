"""A benchmark's images: made of its prompts by any source, laid out as its scripts read them, and
shown with what these found.

Prompts go round, as everywhere: image i is of prompt i mod P. The folder holds what the benchmark
says, and `images.jsonl`, a line an image: file, prompt, category, row i, seed. An interrupted run
goes on where it stopped; any number of processes leaves the same files.
Letters: P prompts.
"""

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genvis.checkpoint import atomic_write, open_run
from genvis.config import dump
from genvis.console import progress
from genvis.devices import processes
from genvis.evaluation.benchmarks import Benchmark, Score, Tally, Task, tally
from genvis.evaluation.gallery import Row, Shown, gallery
from genvis.evaluation.sources import Images, Making, Source
from genvis.images import png


def lay_out(
    benchmark: Benchmark, source: Source, making: Making, folder: str | Path, chunk: int = 64
) -> int:
    """How many images there are; `making.count` is the benchmark's own.

    ValueError if the images are of other prompts, or the folder holds another run.
    """
    folder, tasks = Path(folder), benchmark.tasks()
    count = len(tasks) * benchmark.images
    images = _told(source, tasks, folder).open(replace(making, count=count), chunk)
    if len(images) != count:
        raise ValueError(f"{count} images are wanted, {len(images)} are there")
    lines = [_line(benchmark, tasks, row, images.seed) for row in range(count)]
    state = processes()
    with state.main_process_first():
        open_run(folder, {"images": images.identity, "benchmark": dump(benchmark), "chunk": chunk})
    if state.is_main_process:
        for name, text in benchmark.beside(tasks):
            atomic_write(folder / name, text + "\n")
    starts = range(0, count, chunk)[state.process_index :: state.num_processes]
    for start in progress(starts, f"benchmark {folder}", show=state.is_main_process):
        rows = range(count)[start : start + chunk]
        if not all((folder / lines[row]["file"]).exists() for row in rows):
            _make(images, rows, lines, folder)
    state.wait_for_everyone()
    if state.is_main_process:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        atomic_write(folder / "images.jsonl", text)
    return count


def _told(source: Any, tasks: Sequence[Task], folder: Path) -> Source:
    """The source with these prompts; images that are there already have their own."""
    if all(field.name != "prompts" for field in fields(source)):
        return source
    path = folder.with_name(f"{folder.name}.prompts.txt")
    if processes().is_main_process:
        atomic_write(path, "".join(f"{task.prompt}\n" for task in tasks))
    processes().wait_for_everyone()
    return replace(source, prompts=str(path))


def _line(
    benchmark: Benchmark, tasks: Sequence[Task], row: int, seed: int | None
) -> dict[str, Any]:
    image, prompt = divmod(row, len(tasks))
    task = tasks[prompt]
    file = benchmark.place(tasks, prompt, image)
    known = {"prompt": task.prompt, "category": task.category}
    return {"file": file, **known, "row": row, "seed": seed}


def _make(images: Images, rows: range, lines: list[dict[str, Any]], folder: Path) -> None:
    pixels, cond = images.read(rows)
    shown = cond.prompts or (None,) * len(rows)
    for row, image, prompt in zip(rows, pixels, shown, strict=True):
        line = lines[row]
        if prompt != line["prompt"]:
            raise ValueError(f"image {row} is of {prompt!r}, the benchmark asks {line['prompt']!r}")
        atomic_write(folder / line["file"], png(image.cpu()))


def show(benchmark: Benchmark, scores: Sequence[Score], folder: str | Path) -> Path:
    """`prompts.html` in a folder that `lay_out` wrote: prompts by images with their scores, whose
    table stands above. ValueError unless every image has one.
    """
    folder, tasks = Path(folder), benchmark.tasks()
    table = cells(tally(benchmark, tasks, scores))
    given = {(score.prompt, score.image): score.value for score in scores}
    rows = []
    for p, task in enumerate(tasks):
        shown = []
        for k in range(benchmark.images):
            value = given[p, k]
            right = bool(value) if value in (0, 1) else None  # else a degree
            pixels = _pixels(folder / benchmark.place(tasks, p, k))
            shown.append(Shown(pixels, str(k), right, f"score {value:.3f}"))
        rows.append(Row(task.prompt, shown, task.category))
    path = folder / "prompts.html"
    atomic_write(path, gallery(folder.name, rows, table))
    return path


def cells(found: Sequence[Tally]) -> list[list[str]]:
    """Titles, and a row for every category."""
    rows = [[each.category, f"{each.value:.4f}", str(each.images)] for each in found]
    return [["category", "score", "images"], *rows]


def _pixels(path: Path) -> Tensor:
    """(3, H, W) uint8."""
    pixels = np.array(Image.open(path).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)
