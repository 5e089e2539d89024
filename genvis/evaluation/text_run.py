"""A text run to look at: a page of prompts by images, and where they are of `shapes`, judged by the
checker that knows the truth. Letters: N images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from genvis.checkpoint import RUN, atomic_write, read_json
from genvis.data.scenes import TYPES
from genvis.evaluation.gallery import Row, Shown, gallery
from genvis.evaluation.records import Record, append
from genvis.evaluation.shapes_accuracy import KINDS, NAME, VERDICTS, Check, accuracies
from genvis.images import read_npz
from genvis.samplers.folder import read_prompts
from genvis.types import Cond

GROUPS = {"all": "", "seen": " seen", "held out": " held-out"}  # as the records name them


@dataclass(frozen=True)
class Judged:
    """What `Check` found: verdicts (N, 3), strict, lenient and soft; kinds (N, 4)."""

    verdicts: Tensor
    kinds: Tensor

    @classmethod
    def of(cls, pixels: Tensor, prompts: Sequence[str]) -> "Judged":
        """Images (N, 3, n, n) uint8. ValueError for a prompt that is no caption of `shapes`."""
        found = Check()(pixels, Cond(prompts=tuple(prompts)), range(len(prompts)))
        return cls(found[VERDICTS], found[KINDS])

    def shown(self, image: Tensor, row: int, label: str) -> Shown:
        strict, _, soft = self.verdicts[row].tolist()
        return Shown(image, label, strict == 1, f"image {row}, soft score {soft:.2f}")


def report(folder: str | Path, plain: bool = False) -> tuple[Path, list[list[str]]]:
    """`prompts.html` of a sample folder that was made of prompts, and, unless `plain`, the table of
    its accuracies, which are appended to its `records.jsonl`.

    ValueError for a folder without prompts.
    """
    folder = Path(folder)
    prompts = read_prompts(folder)
    if prompts is None:
        raise ValueError(f"{folder}: no prompts.json: not a sample folder made of prompts")
    images, _ = read_npz(folder / "samples.npz")
    pixels = rearrange(torch.from_numpy(images), "b h w c -> b c h w")
    judged = None if plain else Judged.of(pixels, prompts)
    table = []
    if judged is not None:
        records = accuracies(judged.verdicts, judged.kinds)
        append(folder / "records.jsonl", *records)
        table = cells(records)
    path = folder / "prompts.html"
    page = gallery(folder.name, rows(pixels, prompts, judged), table, _made(folder))
    atomic_write(path, page)
    return path, table


def cells(records: Sequence[Record]) -> list[list[str]]:
    """Titles, and a row for every category: accuracies with their 95 % intervals."""
    known = {record.metric.removeprefix(f"{NAME} "): record for record in records}
    table = [["accuracy", *GROUPS]]
    for category in (*TYPES, "overall"):
        if category in known:
            cells = (_cell(known.get(category + group)) for group in GROUPS.values())
            table.append([category, *cells])
    return table


def _cell(record: Record | None) -> str:
    if record is None or record.interval is None:
        return "-"
    low, high = record.interval
    return f"{record.value:.3f} [{low:.3f}, {high:.3f}] ({record.n})"


def rows(pixels: Tensor, prompts: Sequence[str], judged: Judged | None) -> list[Row]:
    """One for each different prompt, with its images in order."""
    of: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        of.setdefault(prompt, []).append(i)
    if judged is None:
        return [
            Row(prompt, [Shown(pixels[i], str(k), note=f"image {i}") for k, i in enumerate(mine)])
            for prompt, mine in of.items()
        ]
    found = []
    for prompt, mine in of.items():
        shown = [judged.shown(pixels[i], i, str(k)) for k, i in enumerate(mine)]
        type, *rules = judged.kinds[mine[0]].tolist()
        found.append(Row(prompt, shown, TYPES[type], any(rules)))
    return found


def _made(folder: Path) -> str:
    """How the folder's images were made, as far as it says."""
    made = read_json(folder / RUN)["config"] if (folder / RUN).is_file() else {}
    names = [name for name in ("source", "seed", "negative") if made.get(name) is not None]
    return ", ".join(f"{name} {str(made[name])[:12]}" for name in names)
