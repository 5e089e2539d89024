"""A measured value with everything needed to compare it or measure it again: one JSON line each."""

import hashlib
import json
import math
import os
import subprocess
from dataclasses import field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from genvis.config import build, config, dump
from genvis.evaluation.extraction import Features, frechet_name, metric_name
from genvis.evaluation.spread import Spread
from genvis.features.inception import is_published

FRECHET = ("FD", "sFD", "sFID")


@config
class Record:
    """n and n_reference count the images of one draw; beside: values printed in the same breath."""

    metric: str
    value: float
    subject: str | None = None  # whose images were measured
    n: int
    sd: float | None = None  # between draws
    error: float | None = None  # standard error of the value, over the choice of the images
    draws: int | None = None
    interval: tuple[float, float] | None = None  # 95 %
    reference: str | None = None  # such as "train" or "held-out"
    reference_sha256: str | None = None
    n_reference: int | None = None
    floor: float | None = None  # train against held-out, measured the same way
    n_floor: int | None = None  # held-out images in it, where not n
    expected_floor: float | None = None  # of equal distributions at these sizes, in theory
    warning: str | None = None  # why the value may mislead
    beside: dict[str, float] = field(default_factory=dict)
    extractor: str | None = None
    extractor_sha256: str | None = None
    resize: str | None = None  # how the extractor brought images to its size
    comparable_to_published: bool = False
    seed: int | None = None
    keys: str | None = None  # which rows of which stream made the samples
    commit: str | None = None
    config: dict[str, Any] | None = None
    time: str | None = None

    def __post_init__(self) -> None:
        numbers = [self.value, self.sd, self.error, self.floor, self.expected_floor]
        numbers += [*(self.interval or ()), *self.beside.values()]
        if not all(math.isfinite(number) for number in numbers if number is not None):
            raise ValueError(f"{self.metric}: every number of a record must be finite")
        name, sha256 = self.extractor or "", self.extractor_sha256 or ""
        if self.comparable_to_published and not is_published(name, sha256):
            raise ValueError(
                f"{self.metric}: comparable_to_published needs the published Inception's features"
            )
        if self.kind in FRECHET:
            if self.floor is None and self.expected_floor is None:
                raise ValueError(f"{self.metric}: a Frechet distance is recorded beside its floor")
            head = "spatial" if self.kind.startswith("s") else "features"
            if self.metric != frechet_name(name, sha256, head):
                raise ValueError(f"{self.metric}: does not name its extractor and hash")
        elif name and self.metric != metric_name(self.kind, name, sha256):
            raise ValueError(f"{self.metric}: does not name its extractor and hash")

    @property
    def kind(self) -> str:
        """The metric without its extractor; FD-like names in any spelling are Frechet's."""
        kind = self.metric.partition("[")[0]
        return "FD" if kind.upper().startswith(("FD", "FID")) else kind


def frechet_record(
    features: Features, reference: str, spread: Spread, floor: float, **fields: Any
) -> Record:
    """The record of `frechet_over_draws` on these features against a named reference set."""
    return stamped(
        metric=features.metric,
        value=spread.mean,
        sd=spread.sd,
        draws=len(spread.values),
        n=spread.size,
        n_reference=spread.size,
        reference=reference,
        floor=floor,
        extractor=features.extractor,
        extractor_sha256=features.sha256,
        **fields,
    )


def stamped(**fields: Any) -> Record:
    """A record made now, by this commit."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Record(**{"commit": commit(), "time": now, **fields})


def folder_of(*known: Any) -> Path:
    """A place for an evaluation, from plain data that tells it from others: a rerun finds it."""
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    return Path("runs", "evaluations", digest[:16])


def append(path: str | Path, *records: Record) -> None:
    """A line each at the end of a JSONL file, in one write: processes may share the file."""
    data = "".join(json.dumps(dump(r), allow_nan=False) + "\n" for r in records).encode()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if os.write(handle, data) != len(data):
            raise OSError(f"{path}: the disk is full; its last line is incomplete")
    finally:
        os.close(handle)


def read(path: str | Path) -> list[Record]:
    """Every record of a file, in order. ValueError names the line that is not one."""
    records = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            records.append(build(Record, json.loads(line)))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not a record: {error}") from error
    return records


def text(record: Record) -> str:
    """One line for a person: `FD[digits-cnn-v1:3fa9c1] 6.1 +- 0.8 (N=300 vs 300, 20 draws; floor
    train-val 4.9)`.
    """
    spread = record.sd or record.error
    places = 1 if not spread else max(1, -math.floor(math.log10(spread)))
    line = f"{record.metric} {record.value:.{places}f}"
    if record.sd is not None:
        line += f" +- {record.sd:.{places}f}"
    if record.interval is not None:
        line += " [{:.{p}f}, {:.{p}f}]".format(*record.interval, p=places)
    size = f"N={record.n}"
    if record.n_reference is not None:
        size += f" vs {record.n_reference}"
    if record.draws is not None:
        size += f", {record.draws} draws"
    held_out = record.n_floor if record.n_floor != record.n else None
    train_val = "floor train-val" if held_out is None else f"floor train-val of {held_out}"
    floors = {train_val: record.floor, "expected floor": record.expected_floor}
    known = {name: value for name, value in floors.items() if value is not None}
    beside = [f"{name} {value:.{places}f}" for name, value in {**known, **record.beside}.items()]
    warning = f" WARNING: {record.warning}" if record.warning else ""
    return f"{line} ({'; '.join([size, *beside])}){warning}"


@cache
def commit() -> str | None:
    """The git commit of the sources in use, `-dirty` if they differ from it; None outside git."""
    here = Path(__file__).resolve()
    try:  # an installed copy may lie inside a repository of somebody else's
        if _git(here, "ls-files", here.name):
            return _git(here, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")
    except FileNotFoundError:
        pass  # no git on this machine
    return None


def _git(here: Path, *words: str) -> str | None:
    ask = ["git", "-C", str(here.parent), *words]
    return subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip() or None
