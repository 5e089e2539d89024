"""Methods beside each other: score and held-out score against compute, over several seeds.

Every search is a search folder of its own, so a comparison can be left and taken up again.
Letters: S seeds.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

from genvis.checkpoint import atomic_write
from genvis.config import config
from genvis.devices import processes
from genvis.plots import Curve, blank, draw, key_beside, png
from genvis.search import SEARCHES
from genvis.search.folder import search_folder
from genvis.search.hacking import interval
from genvis.search.makers import Source
from genvis.search.result import Search
from genvis.search.study import Study

Row = dict[str, Any]


@config
class Comparison:
    """methods: searches by the name of their method, at rising cost; each takes the place of the
    study's, under each of the seeds.
    """

    study: Study
    methods: dict[str, tuple[Annotated[Search, SEARCHES], ...]]
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different, at least one, got {list(self.seeds)}")
        if not self.methods or not all(self.methods.values()):
            raise ValueError("methods must name at least one, each with at least one search")


def compare(source: Source, comparison: Comparison, folder: str | Path) -> list[Row]:
    """Plain sampling, then a row for every method and budget: mean scores of the images of every
    seed (S) and what an image cost. Also `comparison.json` and, as curves, `comparison.png`.
    """
    rows: list[Row] = []
    for method, searches in comparison.methods.items():
        for k, search in enumerate(searches):
            found = []
            for seed in comparison.seeds:
                study = replace(comparison.study, search=search, seed=seed)
                name = f"{method.replace(' ', '_')}_{k}_seed_{seed}"
                found.append(search_folder(source.open(study), study, Path(folder, name)))
            rows += [] if rows else [_plain(found)]
            rows += [{"method": method, **row} for row in over_seeds(found)]
    if processes().is_main_process:
        atomic_write(Path(folder, "comparison.json"), json.dumps(rows))
        atomic_write(Path(folder, "comparison.png"), _picture(rows))
    return rows


def over_seeds(found: Sequence[Row]) -> Iterator[Row]:
    """The budgets that the searches (S of `search.json`) all reached. Only answers of the kind that
    a search ends with count: a preview on the way is not what a smaller budget would have given.
    """
    ((kind, _),) = found[0]["unit"].items()
    answers = [
        {row["budget"]: row for row in each["rows"] if row["policy"] == each["rows"][-1]["policy"]}
        for each in found
    ]
    for budget in sorted(set.intersection(*map(set, answers))):
        rows = [each[budget] for each in answers]
        yield {
            "budget": budget,
            kind: mean(row["spent"][kind] for row in rows) / found[0]["count"],
            "verifier": [mean(row["verifier"]) for row in rows],
            "judge": [mean(row["judge"]) for row in rows],
            "diversity": [row["diversity"] for row in rows],
            "warnings": sum(each["warning"] is not None for each in found),
        }


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """`comparison.json` as a table: means over seeds with 95% intervals."""
    kind = _kind(rows)
    body = [
        [
            row["method"],
            str(row["budget"]),
            f"{row[kind]:.6g}",
            *(_text(row[key]) for key in ("verifier", "judge", "diversity")),
            f"{row['warnings']} of {len(row['judge'])}",
        ]
        for row in rows
    ]
    titles = ["method", "budget", f"{kind} an image", "verifier", "judge", "diversity", "warned"]
    return [titles, *body]


def _plain(found: Sequence[Row]) -> Row:
    return {
        "method": "plain sampling",
        "budget": 1,
        **found[0]["unit"],
        "verifier": [mean(each["plain"]["verifier"]) for each in found],
        "judge": [mean(each["plain"]["judge"]) for each in found],
        "diversity": [None for _ in found],
        "warnings": 0,
    }


def _picture(rows: Sequence[Row]) -> bytes:
    kind, plain, figure = _kind(rows), rows[0], blank(2)
    for axes, key in zip(figure.subplots(1, 2), ("verifier", "judge"), strict=True):
        curves = []
        for method in dict.fromkeys(row["method"] for row in rows[1:]):
            own = [row for row in rows if row["method"] == method]
            low, middle, high = zip(*(interval(row[key]) for row in own), strict=True)
            curves.append(Curve(method, [row[kind] for row in own], middle, low, high))
        level, title = {"plain sampling": mean(plain[key])}, f"{key}, {len(plain[key])} seeds"
        names = title, f"{kind} an image", "mean score"
        draw(axes, curves, *names, levels=level, log_x=True, key=False)
    key_beside(figure)
    return png(figure)


def _kind(rows: Sequence[Row]) -> str:
    return "tokens" if "tokens" in rows[0] else "evaluations"


def _text(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    low, middle, high = interval(known)
    return f"{middle:.4g} [{low:.4g}, {high:.4g}]"
