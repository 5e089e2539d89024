"""`photo_patches`: random crops of the photographs inside scikit-image and scikit-learn, as a
function of (seed, split, index). Train and val are crops of different photographs.

The files are read where the packages keep them: nothing is fetched. Needs scikit-image.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from genvis.config import config
from genvis.data.drawn import Drawn
from genvis.random import uniforms
from genvis.types import Batch, Cond

PHOTOS = {
    "train": (
        "skimage/data/astronaut.png",
        "skimage/data/coffee.png",
        "skimage/data/hubble_deep_field.jpg",
        "skimage/data/ihc.png",
        "skimage/data/motorcycle_left.png",
        "skimage/data/motorcycle_right.png",
        "skimage/data/retina.jpg",
        "skimage/data/rocket.jpg",
        "sklearn/datasets/images/china.jpg",
    ),
    "val": ("skimage/data/chelsea.png", "sklearn/datasets/images/flower.jpg"),
}
SIDES = 64, 256  # of a crop, in the photograph's pixels


@config
class PhotoPatchesConfig:
    size: int = 32
    count: int = 20_000  # training examples
    held_out: int = 1_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.size <= SIDES[1]:
            raise ValueError(f"size must be in 1..{SIDES[1]}, got {self.size}")

    def build(self, split: str) -> "PhotoPatches":
        return PhotoPatches(self, split)


class PhotoPatches:
    """Images without labels."""

    def __init__(self, config: PhotoPatchesConfig, split: str) -> None:
        if split not in PHOTOS:
            raise ValueError(f"split must be train or val, got {split!r}")
        self.config, self.split = config, split
        self.photos = [_photo(name) for name in PHOTOS[split]]
        self.images = Drawn(
            config.count if split == "train" else config.held_out, config.size, self._draw
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        return Batch(self.images[indices], Cond())

    def _draw(self, index: int) -> NDArray[np.uint8]:
        u = uniforms(5, self.config.seed, int(self.split == "val"), index)
        photo = self.photos[int(next(u) * len(self.photos))]
        smallest = max(SIDES[0], self.config.size)  # never enlarged
        side = smallest + int(next(u) * (SIDES[1] + 1 - smallest))
        left, top = (int(next(u) * (length + 1 - side)) for length in photo.size)
        crop = photo.crop((left, top, left + side, top + side))
        return np.array(crop.resize((self.config.size,) * 2, Image.Resampling.BICUBIC))


def _photo(name: str) -> Image.Image:
    package, _, inside = name.partition("/")
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        needed = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
        raise ModuleNotFoundError(f"photo_patches needs {needed}: pip install {needed}")
    path = Path(found.origin).parent / inside
    if not path.is_file():
        raise ValueError(f"{path}: no such file; this version of {package} does not ship it")
    return Image.open(path).convert("RGB")
