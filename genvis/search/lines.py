"""What a search leaves in words: a line for every image, and from all of them a row for every
budget.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from genvis.search.hacking import interval
from genvis.search.result import SearchResult
from genvis.types import Cost

Line = dict[str, Any]


def line(kept: Mapping[int, SearchResult], judged: Mapping[int, Sequence[float]], i: int) -> Line:
    """How row i of a group was found: its snapshots by budget, the last of which is the answer, and
    what the judge says of each.

    A candidate's number counts through all rounds, as in `parents` and `chosen`.
    """
    *_, (budget, result) = kept.items()
    n = len(result.scores)
    remade = {} if result.searched is None else {"searched": float(result.searched[i])}
    snapshots = [
        {
            "budget": budget,
            "policy": found.policy,
            "spent": _each(found.spent, n),
            "score": float(found.scores[i]),
            "judge": judged[budget][i],
        }
        for budget, found in kept.items()
    ]
    rounds = [
        {
            "spent": _each(turn.spent, n),
            "parents": turn.parents[i].tolist(),
            "scores": None if turn.scores is None else turn.scores[i].tolist(),
            "best": None if turn.best is None else float(turn.best[i]),
        }
        for turn in result.trace
    ]
    return {
        "policy": result.policy,
        "score": float(result.scores[i]),
        "judge": judged[budget][i],
        **remade,
        "diversity": float(result.diversity[i]),
        "spent": _phases(result, n),
        "snapshots": snapshots,
        "chosen": int(result.chosen[i]),
        "rounds": rounds,
    }


def budgets(lines: Sequence[Line]) -> list[int]:
    """Those with a snapshot of some image, from where all images have one."""
    kept = [[snapshot["budget"] for snapshot in each["snapshots"]] for each in lines]
    return sorted({b for own in kept for b in own if b >= max(map(min, kept))})


def row(lines: Sequence[Line], budget: int) -> dict[str, Any]:
    """What was spent over all images, how their answers were chosen and how each scored, within a
    budget.
    """
    kept = [[s for s in each["snapshots"] if s["budget"] <= budget][-1] for each in lines]
    kinds = sorted({kind for snapshot in kept for kind in snapshot["spent"]})
    return {
        "budget": budget,
        "policy": "; ".join(sorted({snapshot["policy"] for snapshot in kept})),
        "spent": {kind: round(sum(s["spent"].get(kind, 0) for s in kept)) for kind in kinds},
        "verifier": [snapshot["score"] for snapshot in kept],
        "judge": [snapshot["judge"] for snapshot in kept],
    }


def cells(found: Mapping[str, Any]) -> list[list[str]]:
    """`search.json` as a table: plain sampling, then a row a budget; spending is of one image."""
    rows, count = found["rows"], found["count"]
    kinds = sorted({kind for each in rows for kind in each["spent"]})
    scores = [found["verifier"], f"held out: {found['judge']}"]
    titles = ["budget", *kinds, *scores, "diversity", "answer"]
    body = [
        [
            str(each["budget"]),
            *(f"{each['spent'].get(kind, 0) / count:.6g}" for kind in kinds),
            *_scores(each),
            "-" if each["diversity"] is None else f"{each['diversity']:.4g}",
            each["policy"],
        ]
        for each in rows
    ]
    plain = ["none", *["-" for _ in kinds], *_scores(found["plain"]), "-", "plain sampling"]
    return [titles, plain, *body]


def _scores(each: Mapping[str, Any]) -> list[str]:
    return [_spread(each[key]) for key in ("verifier", "judge")]


def _spread(values: Sequence[float]) -> str:
    low, mean, high = interval(values)
    return f"{mean:.4g} [{low:.4g}, {high:.4g}]"


def _phases(result: SearchResult, rows: int) -> dict[str, dict[str, float]]:
    """A row's share of searching, and of finishing what was found, or making it again."""
    if result.searched is None:
        return {"search": _each(result.spent, rows), "final": {}}
    before = result.trace[-2].spent
    return {"search": _each(before, rows), "final": _each(result.spent - before, rows)}


def _each(cost: Cost, rows: int) -> dict[str, float]:
    """A row's share, by kind; what nothing was spent on is left out."""
    spent = asdict(cost)
    return {kind: v // rows if v % rows == 0 else v / rows for kind, v in spent.items() if v}
