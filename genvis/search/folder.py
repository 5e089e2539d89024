"""A search on disk: resumable, by any number of processes, the same whichever made it.

A search folder holds `run.json` (what made it), `results.jsonl` (a line an image: how it was
found), `search.json` (scores at every budget), `samples.npz` and `grid.png` of what was found,
`budget_NNN/` with those of every snapshot, `scores.png` and `tree.png`; `parts/` holds finished
groups until the last one is there.
Letters: B images of a group.
"""

import json
import shutil
from contextlib import nullcontext
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genvis.checkpoint import (
    RUN,
    atomic_write,
    in_use,
    load_tensors,
    open_run,
    read_json,
    save_tensors,
)
from genvis.console import bar
from genvis.devices import processes
from genvis.images import from_uint8, png, save_grid, save_npz, to_uint8
from genvis.samplers.folder import save_prompts
from genvis.samplers.generate import shown
from genvis.search import SEARCHES
from genvis.search.diversity import diversity
from genvis.search.hacking import hacking
from genvis.search.job import Job
from genvis.search.ledger import Ledger
from genvis.search.lines import budgets, line, row
from genvis.search.makers import Maker
from genvis.search.pictures import save_scores, save_trees
from genvis.search.result import SearchResult
from genvis.search.study import Study
from genvis.types import Cond, Verifier
from genvis.verifiers.scoring import remembers, scores_of

RESULTS, SUMMARY = "results.jsonl", "search.json"
TREES = 4  # images whose search is drawn


def search_folder(maker: Maker, study: Study, folder: str | Path) -> dict[str, Any]:
    """What `search.json` of a search folder says, made now as far as it is not there: `rows`, one
    per budget, with what was spent over all images, the score of each by the verifier and by the
    judge, and how far apart they are; `warning` if the judge disagrees.
    """
    job, state = Job.of(study, maker), processes()
    if remembers(job.verifier) and state.num_processes > 1:  # before the folder: all say it at once
        raise ValueError(
            f"{job.verifier.name} judges a group of images by those chosen before it: search with "
            "one process"
        )
    with state.main_process_first():
        folder = open_run(folder, job.identity)
    with in_use(folder) if state.is_main_process else nullcontext():
        if not (folder / SUMMARY).exists():
            try:
                _search(job, folder)
            except ValueError:
                if state.is_main_process and not _begun(folder):
                    shutil.rmtree(folder)  # refused before any work: free for the mended study
                raise
            state.wait_for_everyone()
            if state.is_main_process:
                _gather(job, folder)
        state.wait_for_everyone()
    found: dict[str, Any] = read_json(folder / SUMMARY)
    return found


def _search(job: Job, folder: Path) -> None:
    """This process's groups; each judged knowing those before it, by a verifier that remembers."""
    state = processes()
    mine = list(job.study.groups())[state.process_index :: state.num_processes]
    total = sum(map(len, mine))
    with bar(f"search {folder}", total, show=state.is_main_process) as told:
        for rows in mine:
            part = _part(folder, rows)
            if not part.with_suffix(".jsonl").exists():
                _save(job, rows, _snapshots(job, rows, told), part)
            if remembers(job.verifier):
                job = job.after(from_uint8(_pixels(part)))
            told.update(len(rows))


def _snapshots(job: Job, rows: range, told: Any) -> dict[int, SearchResult]:
    """What was found within every budget, by budget."""
    kept = {}
    for result, ledger in job.rounds(rows):
        kept[job.snapshot(result.spent, len(rows))] = result
        best = f"best {float(result.scores.mean()):.4g}"
        told.set_postfix_str(f"{best}, {_left(ledger, len(rows))}", refresh=False)
        told.update(0)
    return kept


def _left(ledger: Ledger, rows: int) -> str:
    """Of the budget for one image, or what it took so far where there is none."""
    spent = asdict(ledger.spent)
    limits = {kind: most for kind, most in asdict(ledger.budget).items() if most is not None}
    if not limits:
        return ", ".join(f"{value // rows} {kind}" for kind, value in spent.items() if value)
    left = (f"{(most - spent[kind]) // rows} {kind}" for kind, most in limits.items())
    return f"left {', '.join(left)}"


def _save(job: Job, rows: range, kept: dict[int, SearchResult], part: Path) -> None:
    """A group's two files: the images of every snapshot, and then the lines, scored by the judge as
    readers of the images see them.
    """
    cond, keys = job.maker.cond(rows), job.study.keys(rows).h.tolist()
    pixels = {budget: to_uint8(result.images) for budget, result in kept.items()}
    judged = {b: _seen(job.judge, images, cond) for b, images in pixels.items()}
    plain = job.plain(rows, kept)
    without = plain.scores.tolist(), _seen(job.judge, to_uint8(plain.images), cond)
    lines = [
        {
            "image": rows[i],
            "seed": job.study.seed,
            "key": format(keys[i] % 2**64, "016x"),
            **_what(job, cond, i),
            **line(kept, judged, i),
            "plain": {"score": without[0][i], "judge": without[1][i]},
        }
        for i in range(len(rows))
    ]
    save_tensors(part.with_suffix(".safetensors"), {str(b): images for b, images in pixels.items()})
    text = "".join(json.dumps(each, allow_nan=False) + "\n" for each in lines)
    atomic_write(part.with_suffix(".jsonl"), text)


@torch.no_grad()
def _seen(judge: Verifier, pixels: Tensor, cond: Cond) -> list[float]:
    return scores_of(judge, from_uint8(pixels), cond).tolist()


def _what(job: Job, cond: Cond, i: int) -> dict[str, Any]:
    method = SEARCHES.name_of(job.study.search)
    label = {} if cond.label is None else {"label": int(cond.label[i])}
    prompt = {} if cond.prompts is None else {"prompt": cond.prompts[i]}
    return {**label, **prompt, "method": method}


def _gather(job: Job, folder: Path) -> None:
    """The whole from all groups; the summary comes last and says that all is there."""
    study, parts = job.study, [_part(folder, rows) for rows in job.study.groups()]
    text = "".join(part.with_suffix(".jsonl").read_text() for part in parts)
    lines = [json.loads(each) for each in text.splitlines()]
    cond = shown(job.maker.things, study.count)
    things = [each.get("label", each.get("prompt")) for each in lines]
    rows = []
    for budget in budgets(lines):
        images = from_uint8(torch.cat([_pixels(part, budget) for part in parts]))
        _save_images(folder / f"budget_{budget:03d}", images, cond)
        rows.append({**row(lines, budget), "diversity": diversity(images, things)})
    _save_images(folder, images, cond)
    if study.png:
        for i, image in enumerate(to_uint8(images)):
            atomic_write(folder / "images" / f"{i:06d}.png", png(image))
    kind, one = job.maker.unit
    scores = [each["plain"] for each in lines]
    plain = {"verifier": [s["score"] for s in scores], "judge": [s["judge"] for s in scores]}
    found = {
        "verifier": job.verifier.name,
        "judge": job.judge.name,
        "count": study.count,
        "unit": {kind: one},
        "plain": plain,
        "rows": rows,
        "warning": hacking(plain, rows) if getattr(job.verifier, "per_image", True) else None,
    }
    save_scores(folder / "scores.png", found)
    save_trees(folder / "tree.png", lines[:TREES])
    atomic_write(folder / RESULTS, text)
    atomic_write(folder / SUMMARY, json.dumps(found, allow_nan=False))
    shutil.rmtree(folder / "parts")


def _begun(folder: Path) -> bool:
    return bool({file.name for file in folder.iterdir()} - {RUN, ".lock"})


def _part(folder: Path, rows: range) -> Path:
    return folder / "parts" / f"{rows.start:09d}"


def _pixels(part: Path, budget: float = inf) -> Tensor:
    """A group's images within a budget, (B, 3, H, W) uint8; by default its answer."""
    kept = load_tensors(part.with_suffix(".safetensors"))
    return kept[str(max(b for b in map(int, kept) if b <= budget))]


def _save_images(folder: Path, images: Tensor, cond: Cond) -> None:
    save_npz(folder / "samples.npz", images, cond.label)
    save_grid(folder / "grid.png", images[:100], 10)
    save_prompts(folder, cond.prompts)
