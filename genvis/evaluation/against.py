"""The kinds of references, by name in a config: a file, published moments, images, a dataset.

Letters: N images, D features.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from genvis.config import Table, config, dump
from genvis.data import DATASETS
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

        digest = hashlib.sha256(Path(self.path).read_bytes()).hexdigest()
        return Reference(
            Path(self.path).name,
            digest,
            self.n,
            moments,
            {"features": rows} if "arr_0" in arrays else {},
            published="mu_s" in arrays and self.resize == "tf1_bilinear",
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

    @cached_property
    def rows(self) -> Rows:
        return self.data.build(self.split)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def identity(self) -> dict[str, Any]:
        return {"data": dump(self.data), "split": self.split}

    def read(self, rows: range) -> tuple[Tensor, Cond]:
        batch = self.rows[rows]
        return to_uint8(batch.x), batch.cond
