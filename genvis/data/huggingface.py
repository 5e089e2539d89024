"""Hugging Face datasets, on the disk or, where asked for, from the hub. Needs `datasets`."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from genvis.config import config
from genvis.data.pictures import Entry, Pictures, split_rows
from genvis.data.stores import readable
from genvis.data.view import View, rgb


@config
class HuggingFaceConfig:
    """path: a folder that `save_to_disk` wrote or, with download, a hub id.

    Without the name of a val split, every held_out-th example of train is held out.
    """

    path: str
    view: View
    image: str = "image"  # columns
    label: str | None = None
    caption: str | None = None
    train: str = "train"  # splits
    val: str | None = None
    held_out: int = 10
    download: bool = False
    allow: int = 0

    def build(self, split: str) -> Pictures:
        if split not in ("train", "val"):
            raise ValueError(f"split must be train or val, got {split!r}")
        table = Rows(self, (split == "val" and self.val) or self.train)
        rows: Sequence[int] = range(len(table.entries))
        if self.val is None:
            rows = split_rows(len(table.entries), split, self.held_out)
        return Pictures(table, rows, self.view, self.allow)


class Rows:
    problems: tuple[str, ...] = ()

    def __init__(self, config: HuggingFaceConfig, split: str) -> None:
        self.source, self.image = f"{config.path}: {split}", config.image
        table = _load(config, split)
        wanted = [name for name in (config.image, config.label, config.caption) if name]
        missing = [name for name in wanted if name not in table.column_names]
        if missing:
            has = ", ".join(table.column_names)
            raise ValueError(f"{self.source}: has no column {missing[0]!r}; it has {has}")
        import datasets

        # undecoded, so that a damaged picture is ours to name
        self.table = table.cast_column(config.image, datasets.Image(decode=False))
        labels = table[config.label] if config.label else [None] * len(table)
        captions = table[config.caption] if config.caption else [None] * len(table)
        self.entries = [
            _entry(str(i), config, label, said)
            for i, (label, said) in enumerate(zip(labels, captions, strict=True))
        ]

    def open(self, index: int) -> Image.Image:
        stored = self.table[index][self.image]
        with readable():
            return rgb(Image.open(BytesIO(stored["bytes"] or Path(stored["path"]).read_bytes())))


def _entry(name: str, config: HuggingFaceConfig, label: Any, said: Any) -> Entry:
    texts = said if isinstance(said, list) else [said]
    captions = tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())
    if config.label and type(label) is not int:
        return Entry(name, problem=f"its {config.label} is {label!r}, not an integer")
    if config.caption and not captions:
        return Entry(name, problem="has no caption")
    return Entry(name, label, captions or None)


def _load(config: HuggingFaceConfig, split: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "data huggingface needs datasets: pip install datasets"
        ) from error
    if not Path(config.path).is_dir() and not config.download:
        raise ValueError(
            f"{config.path}: no such folder; set data.download if it is a hub id to fetch"
        )
    try:
        if config.download:
            return datasets.load_dataset(config.path, split=split)
        found = datasets.load_from_disk(config.path)
        return found[split] if isinstance(found, datasets.DatasetDict) else found
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{config.path}: not a dataset, or without a split {split!r}: {error}"
        ) from error
