"""A user's own pictures: class folders, captions beside them, EDM and ADM zips, webdataset shards.

Where the files are (a folder, a zip, tars), where labels come from and where captions come from are
three choices that combine freely.
"""

import json
from collections.abc import Sequence
from typing import Any, Literal

from PIL import Image

from genvis.config import config
from genvis.data.pictures import Entry, Pictures, split_rows
from genvis.data.stores import Store, beside, expand, images_of, open_store, read, readable
from genvis.data.view import View, rgb

EDM, METADATA = "dataset.json", "metadata.jsonl"


@config
class FilesConfig:
    """root: a folder, a `.zip`, a `.tar` or `shard-{000..146}.tar`. With `{split}` in it, train and
    val are two places; without, every held_out-th picture is held out.

    labels: folders (the sorted names at the top are classes 0, 1, ...), edm (the integers of
    `dataset.json`, as in EDM's and StyleGAN's zips), cls (a number in `KEY.cls`).
    captions: txt (`KEY.txt` beside the image, one a line), metadata (`metadata.jsonl` at the top,
    with file_name and `column`, a text or a list of texts).
    """

    root: str
    view: View
    labels: Literal["folders", "edm", "cls"] | None = None
    captions: Literal["txt", "metadata"] | None = None
    column: str = "text"
    held_out: int = 10
    allow: int = 0  # how many pictures may be bad: damaged, or without their label or caption

    def __post_init__(self) -> None:
        if self.allow < 0:
            raise ValueError(f"allow must be at least 0, got {self.allow}")
        if self.labels == "folders" and len(expand(self.root)) > 1:
            raise ValueError("labels: folders is for one place; shards have KEY.cls (labels: cls)")

    def build(self, split: str) -> Pictures:
        root = self.root.replace("{split}", split)
        files = Files(root, open_store(root), self)
        rows: Sequence[int] = range(len(files.entries))
        if root == self.root:
            rows = split_rows(len(files.entries), split, self.held_out)
        return Pictures(files, rows, self.view, self.allow)


class Files:
    """Every image in a store, with what its layout says of it."""

    def __init__(self, source: str, store: Store, config: FilesConfig) -> None:
        self.source, self.store = source, store
        self.problems: list[str] = []
        images = images_of(store.names)
        labels = self._labels(config.labels, images)
        captions = self._captions(config, images)
        self.entries = [
            Entry(
                name,
                labels.get(name),
                captions.get(name),
                ("has no label" if config.labels and name not in labels else None)
                or ("has no caption" if config.captions and not captions.get(name) else None),
            )
            for name in images
        ]

    def open(self, index: int) -> Image.Image:
        with readable(), self.store.open(self.entries[index].name) as file:
            return rgb(Image.open(file))

    def _labels(self, kind: str | None, images: list[str]) -> dict[str, int]:
        if kind == "folders":
            return self._folders(images)
        if kind == "edm":
            return self._edm()
        if kind == "cls":
            texts = self._beside(images, ".cls")
            return {name: int(text) for name, text in texts.items() if text.strip().isdecimal()}
        return {}

    def _folders(self, images: list[str]) -> dict[str, int]:
        classes = {name: number for number, name in enumerate(self.store.folders)}
        if {"train", "val"} <= classes.keys():
            raise ValueError(f"{self.source}: holds train and val: write {self.source}/{{split}}")
        filled = {name.partition("/")[0] for name in images}
        self.problems += [f"{name}: an empty class" for name in classes if name not in filled]
        tops = {name: name.partition("/")[0] for name in images if "/" in name}
        return {name: classes[top] for name, top in tops.items()}

    def _edm(self) -> dict[str, int]:
        where = f"{self.source}: {EDM}"
        if EDM not in self.store.names:
            raise ValueError(
                f"{where}: no such file; are the folders the classes (labels: folders)?"
            )
        try:
            pairs = json.loads(read(self.store, EDM))["labels"]
            labels = dict(pairs or ())
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{where}: expected {{"labels": [[name, 3], ...]}}: {error}'
            ) from error
        if not labels:
            raise ValueError(f"{where}: has no labels (labels: null)")
        odd = next((name for name, label in labels.items() if type(label) is not int), None)
        if odd is not None:
            raise ValueError(f"{where}: the label of {odd} is {labels[odd]!r}, not an integer")
        return labels

    def _captions(self, config: FilesConfig, images: list[str]) -> dict[str, tuple[str, ...]]:
        if config.captions == "txt":
            texts = self._beside(images, ".txt")
            return {name: _texts(text.split("\n")) for name, text in texts.items()}
        if config.captions == "metadata":
            return self._metadata(config.column, images)
        return {}

    def _metadata(self, column: str, images: list[str]) -> dict[str, tuple[str, ...]]:
        where = f"{self.source}: {METADATA}"
        if METADATA not in self.store.names:
            raise ValueError(f"{where}: no such file; it belongs beside the images, in their split")
        captions = {}
        # not splitlines: a caption may hold the line breaks of Unicode
        for number, line in enumerate(self._text(METADATA).split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                name, said = row["file_name"], row.get(column)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{where}: line {number}: not JSON with file_name: {error}"
                ) from error
            captions[name] = _texts(said if isinstance(said, list) else [said])
        there = set(images)
        self.problems += [f"{n}: only in {METADATA}" for n in captions if n not in there]
        return captions

    def _beside(self, images: list[str], extension: str) -> dict[str, str]:
        """The text of the file beside each image, where there is one."""
        found = beside(self.store, images, extension)
        return {name: self._text(path) for name, path in found.items()}

    def _text(self, name: str) -> str:
        try:
            return read(self.store, name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.source}: {name}: not UTF-8: {error}") from error


def _texts(said: list[Any]) -> tuple[str, ...]:
    return tuple(text.strip() for text in said if isinstance(text, str) and text.strip())
