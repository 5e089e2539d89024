"""The log of a run: one JSON object a line in `log.jsonl`, whatever tracker is beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genvis.checkpoint import atomic_write


class Journal:
    """Opened at the step a run resumes from: what was logged after it is forgotten."""

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "log.jsonl"
        kept = [line for line in read_journal(folder) if line["step"] <= step]
        atomic_write(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")


def read_journal(folder: str | Path) -> list[dict[str, Any]]:
    """Every complete line of a run's log, in order; none if there is no log."""
    path = Path(folder) / "log.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
