"""One page that shows a whole study: training, samples, search, quantization, and what to compare
with.

A study's folder holds `train/` (a run), `samples/`, `search/`, `int8/` and the like (model folders,
each with `NAME_samples/`), and `records.jsonl`. The page is self-contained: pictures and curves are
inside it.
"""

import html
from pathlib import Path
from typing import Any

from genvis import __version__
from genvis.checkpoint import atomic_write, read_json
from genvis.evaluation.evaluate import by_subject, caption, protocols, tabulate
from genvis.evaluation.records import Record, read
from genvis.evaluation.tables import cells
from genvis.page import figure, page, picture, table
from genvis.plots import Curve, svg
from genvis.training.callbacks import BINS
from genvis.training.journal import read_journal


def write_report(folder: str | Path) -> Path:
    """`report.html` from what a study's folder holds. ValueError if it holds no records."""
    folder = Path(folder)
    if not (folder / "records.jsonl").exists():
        raise ValueError(f"{folder}: no records.jsonl, so there is nothing to report")
    records = read(folder / "records.jsonl")
    if not records:
        raise ValueError(f"{folder}: records.jsonl is empty, so there is nothing to report")
    judged, *others = protocols(records)
    parts = [
        _summary(judged),
        *map(_other, others),
        _measures(records),
        _samples(folder),
        _training(folder / "train"),
        _search(folder / "search", judged),
        _quantization(folder, judged),
        _origin(folder, records),
    ]
    path = folder / "report.html"
    atomic_write(path, page(f"genvis: {folder.name}", parts))
    return path


def _summary(records: list[Record]) -> str:
    keys = ("fd_train", "fd_held-out", "svm_accuracy", "nearest_ratio")
    return (
        f"<p>{html.escape(caption(records))} The SVM reads labels from pixels; a ratio well below "
        f"1 in the last column means copying.</p>{table(tabulate(records, keys=keys))}"
    )


def _other(records: list[Record]) -> str:
    """Distances that were measured otherwise, which cannot stand in one table with the first."""
    rows = tabulate(records)
    return f"<p>{html.escape(caption(records))}</p>{table(rows)}" if len(rows[0]) > 1 else ""


def _measures(records: list[Record]) -> str:
    """What a suite measured beyond distances, each with its standard error."""
    measured = [record for record in records if record.extractor and record.error is not None]
    if not measured:
        return ""
    return f"<h2>Measures</h2>{table(cells(measured))}"


def _samples(folder: Path) -> str:
    picture = _picture(folder / "samples" / "grid.png", "one column a class, full precision")
    return f"<h2>Samples</h2>{picture}" if picture else ""


def _training(run: Path) -> str:
    lines = read_journal(run)
    losses = [line for line in lines if "loss" in line]
    if not losses:
        return ""
    curves = [Curve("training", _column(losses, "step"), _column(losses, "loss"))]
    for key, label in (("val_loss", "held-out"), ("val_ema_loss", "held-out, averaged weights")):
        checks = [line for line in lines if key in line]
        if checks:
            curves.append(Curve(label, _column(checks, "step"), _column(checks, key)))
    plots = [svg(curves, "Loss", "step", "mean squared error")]
    levels = [f"val_ema_loss_level_{k}" for k in range(BINS)]
    by_noise = [line for line in lines if all(key in line for key in levels)]
    if by_noise:
        where = [(k + 0.5) / BINS for k in range(BINS)]
        by_level = [
            Curve(
                f"step {line['step']}",
                where,
                [line[key] for key in levels],
            )
            for line in (by_noise[0], by_noise[-1])
        ]
        plots.append(
            svg(by_level, "Held-out loss by noise level", "noise level", "mean squared error")
        )
    grids = sorted((run / "samples").glob("step_*.png"))
    pictures = [_picture(path, f"step {int(path.stem.removeprefix('step_'))}") for path in grids]
    return "<h2>Training</h2>" + "".join(map(figure, plots)) + "".join(pictures)


def _search(folder: Path, records: list[Record]) -> str:
    known = by_subject(records)
    found: dict[str, Any] = (
        read_json(folder / "search.json") if (folder / "search.json").exists() else {"rows": []}
    )
    budgets = {f"best of {row['budget']}": row for row in found["rows"]}
    names = [name for name in budgets if name in known]
    if not names:
        return ""
    rows = [known[name] for name in names]
    evaluations = [budgets[name]["spent"]["evaluations"] / found["count"] for name in names]

    def curves(labels: dict[str, str]) -> list[Curve]:
        drawn = []
        for key, label in labels.items():
            points = [(x, row[key]) for x, row in zip(evaluations, rows, strict=True) if key in row]
            if points:
                at, values = zip(*points, strict=True)
                lows, highs = zip(*(v.interval or (v.value, v.value) for v in values), strict=True)
                drawn.append(Curve(label, at, [v.value for v in values], lows, highs))
        return drawn

    x = "network evaluations per image"
    plots = []
    scores = curves(
        {
            "score_verifier": f"verifier {found['verifier']}",
            "score_judge": f"held-out judge {found['judge']}",
        }
    )
    if scores:
        y = "mean score, 95% interval"
        plots.append(svg(scores, "Score of the image kept", x, y, log_x=True))
    distances = curves({"fd_train": "to training images", "fd_held-out": "to held-out images"})
    if distances:
        one = next(r for row in rows for r in row.values() if r.kind == "FD")
        levels = {"floor": one.floor or 0}
        plots.append(svg(distances, "Distance", x, one.metric, levels=levels, log_x=True))
    keys = ("score_verifier", "score_judge", "fd_train", "fd_held-out", "svm_accuracy")
    gain = ""
    if "judge_gain" in rows[-1]:
        rise = rows[-1]["judge_gain"]
        low, high = rise.interval or (rise.value, rise.value)
        gain = (
            f"<p>{names[-1]} against {rise.reference or next(iter(budgets))}, paired by image: the "
            f"judge's score changes by {rise.value:+.4f}, 95% interval [{low:.4f}, {high:.4f}].</p>"
        )
    warning = f"<p>Warning: {html.escape(found['warning'])}.</p>" if found.get("warning") else ""
    shown = dict.fromkeys([names[0], names[-1]])  # one picture if there is one budget
    pictures = [
        _picture(folder / f"budget_{budgets[name]['budget']:03d}" / "grid.png", name)
        for name in shown
    ]
    return "".join(
        [
            "<h2>Search</h2>",
            table(tabulate(records, names, keys)),
            gain,
            warning,
            *map(figure, plots),
            f"<div>{''.join(pictures)}</div>",
        ]
    )


def _quantization(folder: Path, records: list[Record]) -> str:
    known = by_subject(records)
    names = [name for name, row in known.items() if "bytes" in row]
    if not any("share_changed" in known[name] for name in names):
        return ""  # full precision alone
    keys = ("bytes", "share_changed", "fd_train", "fd_held-out", "svm_accuracy", "psnr")
    pictures = [_picture(folder / f"{name}_samples" / "grid.png", name) for name in names]
    return (
        "<h2>Quantized weights</h2><p>The same keys through each network; PSNR against full "
        f"precision.</p>{table(tabulate(records, names, keys))}{''.join(pictures)}"
    )


def _origin(folder: Path, records: list[Record]) -> str:
    recipe = folder / "train" / "recipe.yaml"
    text = html.escape(recipe.read_text()) if recipe.exists() else ""
    commit = next((record.commit for record in records if record.commit), "unknown")
    return (
        f"<h2>How it was made</h2><p class='note'>genvis {__version__}, commit {commit}, "
        f"{records[-1].time}</p><pre>{text}</pre>"
    )


def _picture(path: Path, caption: str) -> str:
    if not path.exists():
        return ""
    return figure(picture(path.read_bytes(), caption), caption)


def _column(lines: list[dict[str, Any]], key: str) -> list[float]:
    return [line[key] for line in lines]
