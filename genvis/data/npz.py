"""ADM's npz as a dataset: `arr_0` uint8 (N, H, W, 3) and, where there are labels, `arr_1`."""

from collections.abc import Sequence

from PIL import Image

from genvis.config import config
from genvis.data.pictures import Entry, Pictures, split_rows
from genvis.data.view import View
from genvis.images import read_npz


@config
class NpzConfig:
    """With `{split}` in the path, train and val are two files; without, every held_out-th image is
    held out.
    """

    path: str
    view: View
    held_out: int = 10

    def build(self, split: str) -> Pictures:
        path = self.path.replace("{split}", split)
        arrays = Arrays(path)
        rows: Sequence[int] = range(len(arrays.entries))
        if path == self.path:
            rows = split_rows(len(arrays.entries), split, self.held_out)
        return Pictures(arrays, rows, self.view)


class Arrays:
    problems: tuple[str, ...] = ()

    def __init__(self, path: str) -> None:
        self.source = path
        self.images, labels = read_npz(path)
        numbers = [None] * len(self.images) if labels is None else labels.tolist()
        self.entries = [Entry(str(i), label) for i, label in enumerate(numbers)]

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])
