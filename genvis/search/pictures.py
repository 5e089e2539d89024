"""Pictures of a search: scores against compute, and the tree of its candidates."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genvis.checkpoint import atomic_write
from genvis.plots import COLOURS, INK, Curve, blank, draw, png
from genvis.search.hacking import interval

FAINT = "#cccccc"


def save_scores(path: Path, found: dict[str, Any]) -> None:
    """The mean score by the verifier and by the judge at every budget, with 95% intervals."""
    rows, count = found["rows"], found["count"]
    ((kind, _),) = found["unit"].items()
    spent = [row["spent"][kind] / count for row in rows]
    figure = blank(2)
    for axes, key, role in zip(
        figure.subplots(1, 2), ("verifier", "judge"), ("searched", "held out"), strict=True
    ):
        spans = [interval(row[key]) for row in rows]
        low, mean, high = zip(*spans, strict=True)
        curve = Curve(found[key], spent, mean, low, high)
        plain = {"plain sampling": interval(found["plain"][key])[1]}
        titles = f"{key}, {role}", f"{kind} an image", "mean score"
        draw(axes, [curve], *titles, levels=plain, log_x=True)
    atomic_write(path, png(figure))


def save_trees(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Candidates by the round that made them and their score, joined to what they were made from;
    the line that led to the answer is drawn bold.
    """
    figure = blank(len(lines))
    for axes, line in zip(figure.subplots(1, len(lines), squeeze=False)[0], lines, strict=True):
        _tree(axes, line)
    atomic_write(path, png(figure))


def _tree(axes: Any, line: dict[str, Any]) -> None:
    places, parents = nodes(line["rounds"])
    won, at = set(), line["chosen"]
    while at >= 0:
        won.add(at)
        at = parents[at]
    for child in places:
        parent = parents[child]
        while parent >= 0 and parent not in places:  # one that was only looked at
            parent = parents[parent]
        if parent >= 0:
            ends, bold = zip(places[parent], places[child], strict=True), child in won
            axes.plot(*ends, color=COLOURS[0] if bold else FAINT, linewidth=2 if bold else 0.6)
    for number, (x, y) in places.items():
        axes.plot(x, y, "o", color=COLOURS[0] if number in won else INK, markersize=3)
    what = line.get("prompt", f"class {line['label']}" if "label" in line else "")
    axes.set_title(f"image {line['image']} {what}"[:50], fontsize=10)
    axes.set_xlabel("round")
    axes.set_ylabel("score")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)


def nodes(
    rounds: Sequence[dict[str, Any]],
) -> tuple[dict[int, tuple[int, float]], list[int]]:
    """(round, score) of every candidate that was scored, by its number; and every one's parent."""
    places: dict[int, tuple[int, float]] = {}
    parents: list[int] = []
    for k, turn in enumerate(rounds):
        for i, parent in enumerate(turn["parents"]):
            if turn["scores"] is not None:
                places[len(parents)] = (k, turn["scores"][i])
            parents.append(parent)
    return places, parents
