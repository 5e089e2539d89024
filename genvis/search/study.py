"""One search at rising budgets: what it found by the verifier it maximised, and by a judge that it
never saw.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch

from genvis.checkpoint import atomic_write, in_use, open_run, read_json
from genvis.config import config, dump
from genvis.console import progress
from genvis.devices import processes
from genvis.images import from_uint8, save_grid, save_npz, to_uint8
from genvis.random import HashKeys
from genvis.samplers.generate import labelled
from genvis.samplers.generator import Generator, SamplerConfig
from genvis.search import SEARCHES
from genvis.search.ledger import Ledger
from genvis.search.result import Search
from genvis.types import Verifier, VerifierConfig
from genvis.verifiers import VERIFIERS


@config
class Study:
    """`count` images, image i of class i mod K; a snapshot at every budget (candidates each)."""

    sampler: SamplerConfig
    search: Annotated[Search, SEARCHES]
    verifier: Annotated[VerifierConfig, VERIFIERS]
    judge: Annotated[VerifierConfig, VERIFIERS]
    budgets: tuple[int, ...] = (1, 2, 4, 8, 16)
    count: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")
        if (
            not self.budgets
            or list(self.budgets) != sorted(set(self.budgets))
            or self.budgets[0] < 1
        ):
            raise ValueError(
                f"budgets must rise from at least 1 candidate per image, got {list(self.budgets)}"
            )
        if self.budgets[-1] > self.search.n:
            raise ValueError(
                f"a budget of {self.budgets[-1]} needs search.n at least that, got {self.search.n}"
            )
        if self.verifier == self.judge:
            raise ValueError(
                "judge must differ from verifier, or its score says nothing about what was found"
            )


def search_folder(
    generator: Generator, study: Study, folder: str | Path, source: str
) -> list[dict[str, Any]]:
    """One row per budget: evaluations, scores of verifier and judge per image. Also written as
    `search.json`, beside `budget_NNN/samples.npz` and `budget_NNN/grid.png`; a finished folder is
    only read. `source` identifies the weights.
    """
    verifier, judge = study.verifier.build(), study.judge.build()
    names = {"verifier_weights": verifier.name, "judge_weights": judge.name}
    folder = open_run(folder, {"source": source, **names, **dump(study)})
    with in_use(folder):
        if not (folder / "search.json").exists():
            rows = _search(generator, study, verifier, judge, folder)
            found = {"verifier": verifier.name, "judge": judge.name, "count": study.count}
            atomic_write(folder / "search.json", json.dumps({**found, "rows": rows}))
    return read_json(folder / "search.json")["rows"]


def _search(
    generator: Generator, study: Study, verifier: Verifier, judge: Verifier, folder: Path
) -> list[dict[str, Any]]:
    """The rows, with the images of every budget written on the way."""
    rows = []
    cond = labelled(generator.config.backbone.num_classes, range(study.count))
    assert cond.label is not None
    keys = HashKeys.of(study.seed, range(study.count)).fold("sample")
    ledger, sampler = Ledger(), generator.to(processes().device).sampler(study.sampler)
    found = study.search.rounds(sampler, cond, verifier, keys, ledger)
    last = study.budgets[-1]
    for n, result in enumerate(progress(found, f"search {folder}", total=last), start=1):
        if n in study.budgets:
            images = from_uint8(to_uint8(result.images))  # as a reader of the file sees them
            where = folder / f"budget_{n:03d}"
            save_npz(where / "samples.npz", images, cond.label)
            save_grid(where / "grid.png", images[:100], 10)
            with torch.no_grad():
                judged = judge(images, cond).tolist()
            scores = {"verifier": result.scores[:, -1].tolist(), "judge": judged}
            rows.append({"budget": n, "spent": asdict(ledger.spent), **scores})
        if n == last:
            break
    return rows
