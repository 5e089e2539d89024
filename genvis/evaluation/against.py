"""The kinds of references, by name in a config: a file, published moments, images, a dataset.

Letters: N images, D features.
"""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from genvis.checkpoint import file_sha256
from genvis.config import Table, config, dump
from genvis.data import DATASETS
from genvis.data.stores import Folder, changed, expand
from genvis.evaluation.extraction import HeadedExtractor
from genvis.evaluation.observe import observe
from genvis.evaluation.reference import Reference, load_reference, of_seen
from genvis.evaluation.sources import Making, source_of
from genvis.evaluation.statistics import Statistics
from genvis.features.inception import is_published
from genvis.images import DAMAGED, to_uint8
from genvis.types import Cond, DatasetConfig
from genvis.types import Dataset as Rows

UNLIMITED = 10**9  # the n of moments whose n nobody wrote down
# Files of the ADM suite that papers measure against. Source: Dhariwal and Nichol 2021, "Diffusion
# models beat GANs on image synthesis", the references of its evaluation code. Their hashes were
# never published, so a file is known by its name and by what is in it.
PUBLISHED = {
    *(f"VIRTUAL_imagenet{size}_labeled.npz" for size in (64, 128, 256)),
    "VIRTUAL_imagenet512.npz",
    *(f"VIRTUAL_lsun_{kind}256.npz" for kind in ("bedroom", "cat", "horse")),
}
SIZES = {"mu": 2048, "sigma": 2048, "mu_s": 2023, "sigma_s": 2023}  # of the published Inception


class ReferenceConfig(Protocol):
    def open(self, extractor: HeadedExtractor, folder: Path, chunk: int) -> Reference:
        """The reference in the extractor's features; `folder` is for what has to be computed."""
        ...


REFERENCES = Table(
    "reference",
    {
        "file": "genvis.evaluation.against:ReferenceFile",
        "moments": "genvis.evaluation.against:Moments",
        "images": "genvis.evaluation.against:RealImages",
        "dataset": "genvis.evaluation.against:Dataset",
    },
)


@config
class ReferenceFile:
    """A file that `sampling/reference.py` wrote."""

    path: str

    def open(self, extractor: HeadedExtractor, folder: Path, chunk: int) -> Reference:
        return load_reference(self.path, extractor)


@config
class Moments:
    """Published Inception moments: the ADM suite's reference .npz as it is (`mu`, `sigma`, and
    where there are `mu_s`, `sigma_s` for sFID and images `arr_0` for precision and recall), or
    another's `mu` and `sigma`, in which case say how its images were resized.
    """

    path: str
    resize: str = "tf1_bilinear"
    n: int | None = None  # how many images, if known

    def __post_init__(self) -> None:
        if self.n is not None and self.n < 2:
            raise ValueError(f"n must be at least 2, got {self.n}")

    def open(self, extractor: HeadedExtractor, folder: Path, chunk: int) -> Reference:
        if not is_published(extractor.name, extractor.sha256) or extractor.resize != self.resize:
            raise ValueError(
                f"{self.path}: a reference of another extractor: it is of the published Inception "
                f"with resize {self.resize}, not of {extractor.name}"
            )
        if not Path(self.path).is_file():
            raise ValueError(f"{self.path}: no such file")
        arrays = self._arrays()
        if "mu" not in arrays or "sigma" not in arrays:
            raise ValueError(f"{self.path}: holds {', '.join(arrays)}, but not mu and sigma")
        if ("mu_s" in arrays) != ("sigma_s" in arrays):
            raise ValueError(f"{self.path}: mu_s and sigma_s belong together, and one is missing")
        moments = {
            head: Statistics.of_moments(
                self.n or UNLIMITED, arrays[mean], arrays[cov], extractor.sha256
            )
            for head, mean, cov in (("features", "mu", "sigma"), ("spatial", "mu_s", "sigma_s"))
            if mean in arrays
        }

        def rows() -> Tensor:
            images = source_of(self.path).open(Making(), chunk)
            return observe(images, extractor, folder, chunk=chunk).rows("features")

        digest = file_sha256(self.path)
        return Reference(
            Path(self.path).name,
            digest,
            self.n,
            moments,
            {"features": rows} if "arr_0" in arrays else {},
            published=Path(self.path).name in PUBLISHED
            and self.resize == "tf1_bilinear"
            and {name: len(arrays.get(name, ())) for name in SIZES} == SIZES,
        )

    def _arrays(self) -> dict[str, Tensor]:
        """The moments; of the images the name alone, as they may fill gigabytes."""
        try:
            with np.load(self.path, allow_pickle=False) as data:
                return {
                    name: torch.empty(0) if name == "arr_0" else torch.from_numpy(data[name])
                    for name in data.files
                    if name in ("mu", "sigma", "mu_s", "sigma_s", "arr_0")
                }
        except DAMAGED as error:
            raise ValueError(f"{self.path}: truncated, or not an .npz: {error}") from error


@config
class RealImages:
    """A folder, zip or npz of real images, looked at now."""

    path: str

    def open(self, extractor: HeadedExtractor, folder: Path, chunk: int) -> Reference:
        images = source_of(self.path).open(Making(), chunk)
        return of_seen(observe(images, extractor, folder, chunk=chunk), self.path)


@config
class Dataset:
    """The training images of a dataset, with its held-out ones for the floor."""

    data: Annotated[DatasetConfig, DATASETS]

    def open(self, extractor: HeadedExtractor, folder: Path, chunk: int) -> Reference:
        train, held_out = (
            observe(DatasetImages(self.data, split), extractor, folder / split, chunk=chunk)
            for split in ("train", "val")
        )
        return of_seen(train, "train", held_out)


@dataclass(frozen=True)
class DatasetImages:
    """A split of a dataset as numbered images."""

    data: DatasetConfig
    split: str
    seed: None = field(default=None, init=False)

    @cached_property
    def rows(self) -> Rows:
        return self.data.build(self.split)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def identity(self) -> dict[str, Any]:
        known = dump(self.data)
        files = hashlib.sha256("\n".join(_stamps(known, self.split)).encode()).hexdigest()
        return {"data": known, "split": self.split, "files": files}

    def read(self, rows: range) -> tuple[Tensor, Cond]:
        batch = self.rows[rows]
        return to_uint8(batch.x), batch.cond


def _stamps(plain: Any, split: str) -> list[str]:
    """Names, sizes and times of all files that a config names, or that lie in a folder it names."""
    if isinstance(plain, (dict, list)):
        inside = plain.values() if isinstance(plain, dict) else plain
        return [stamp for value in inside for stamp in _stamps(value, split)]
    found = []
    for path in map(
        Path, expand(plain.replace("{split}", split)) if isinstance(plain, str) else ()
    ):
        if path.is_dir():
            folder = Folder(str(path))
            found += [f"{name} {folder.stamp(name)}" for name in folder.names]
        elif path.is_file():
            found.append(changed(path))
    return found
