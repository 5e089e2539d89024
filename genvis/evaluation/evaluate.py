"""What a set of samples is worth: distances, an independent reader, copying; and the rows beside
which these numbers mean something.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from genvis.config import config, dump
from genvis.data import DATASETS
from genvis.devices import processes
from genvis.evaluation.extraction import (
    ExtractorConfig,
    Features,
    HeadedExtractor,
    extract,
    fingerprint,
    images_as_stored,
)
from genvis.evaluation.fidelity import nearest_distances, psnr
from genvis.evaluation.records import Record, append, folder_of, frechet_record, stamped
from genvis.evaluation.references import copies, pixel_gaussian
from genvis.evaluation.spread import Spread, frechet_over_draws
from genvis.evaluation.svm import PixelSVM
from genvis.evaluation.tables import aligned
from genvis.features import EXTRACTORS
from genvis.features.classifier import DIGITS_CNN_V1
from genvis.images import to_uint8
from genvis.random import HashKeys
from genvis.samplers.folder import read_pairs, read_samples
from genvis.types import DatasetConfig

REFERENCE_SAMPLES = 1000  # how many images the reference generators make
REFERENCES = ("held-out", "pixel Gaussian", "training copies")  # subjects of `Judge.references`


@config
class Evaluation:
    data: Annotated[DatasetConfig, DATASETS]
    extractor: Annotated[ExtractorConfig, EXTRACTORS] = DIGITS_CNN_V1  # its features make the FD
    draws: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise ValueError(f"draws must be at least 2: one draw is noise; got {self.draws}")

    def report(
        self, source: str, against: str | None = None, folder: str | Path | None = None
    ) -> tuple[list[Record], str]:
        """Every record of a sample folder or .npz, and all of them in a table with the references;
        `against`: samples of the same keys from another model. `folder` (default: a place in runs/)
        gets `records.jsonl`.
        """
        judge = Judge(self)
        if against is not None:
            images, labels, others = read_pairs(source, against)
        else:
            (images, labels), others = read_samples(source), None
        # a reference's row must not hide the samples' own
        subject = f"./{source}" if source in REFERENCES else source
        records = judge.measure(subject, images, labels, others)
        if folder is None:
            folder = folder_of(dump(self), str(source), str(against))
        if processes().is_main_process:
            append(Path(folder, "records.jsonl"), *records)
        return records, table([*records, *judge.references()])


@dataclass(frozen=True)
class LabelledSet:
    """Images (N, 3, H, W) in [-1, 1] as stored in 8 bits, labels (N,), features (N, D)."""

    images: Tensor
    labels: Tensor
    features: Features


@dataclass(frozen=True)
class Judge:
    """The real images that samples are measured against; everything about them computed once.

    Every distance is an average over draws with the held-out set's class counts, so that size and
    labels never make a difference between two rows.
    """

    evaluation: Evaluation

    @cached_property
    def extractor(self) -> HeadedExtractor:
        return self.evaluation.extractor.build()

    @cached_property
    def train(self) -> LabelledSet:
        return self._real("train")

    @cached_property
    def held_out(self) -> LabelledSet:
        return self._real("val")

    @cached_property
    def svm(self) -> PixelSVM:
        return PixelSVM.fit(self.train.images, self.train.labels)

    @cached_property
    def floor(self) -> Spread:
        """Held-out images to training images: what a perfect generator would score."""
        return self._distance(self.held_out, self.train)

    def measure(
        self, subject: str, images: Tensor, labels: Tensor, against: Tensor | None = None
    ) -> list[Record]:
        """Every measure of images (N, 3, H, W), labels (N,); `against`: what the same keys gave
        another model, for the drift. ValueError if they are not shaped like the data.
        """
        if images.shape[1:] != self.train.images.shape[1:]:
            wanted, given = tuple(self.train.images.shape[1:]), tuple(images.shape[1:])
            raise ValueError(f"{subject}: images must be {wanted} like the data, got {given}")
        ours = self._labelled(images, labels)
        common = {"subject": subject, "config": dump(self.evaluation), "seed": self.evaluation.seed}
        records = [
            frechet_record(
                ours.features,
                name,
                self._distance(ours, real),
                self.floor.mean,
                reference_sha256=fingerprint(real.images),
                resize=self.extractor.resize,
                **common,
            )
            for name, real in (("train", self.train), ("held-out", self.held_out))
            if images is not real.images  # a set's distance to itself says nothing
        ]
        n = len(images)
        nearest = nearest_distances(ours.images, self.train.images).quantile(0.5)
        ratio = nearest / self._nearest_held_out
        accuracy = self.svm.accuracy(ours.images, labels)
        records += [
            stamped(metric="svm_accuracy", value=accuracy, n=n, **common),
            stamped(metric="nearest_train", value=nearest.item(), n=n, **common),
            stamped(metric="nearest_ratio", value=ratio.item(), n=n, **common),
        ]
        if against is not None:
            drift = psnr(to_uint8(images), to_uint8(against))
            beside = {"fifth percentile": drift.fifth}
            paired = {"reference": "the same keys", "reference_sha256": fingerprint(against)}
            records.append(
                stamped(metric="psnr", value=drift.mean, n=n, beside=beside, **paired, **common)
            )
        return records

    def references(self) -> list[Record]:
        """Rows of the held-out images, of a Gaussian per class, of copies of training images."""
        classes = len(self.held_out.labels.unique())
        wanted = torch.arange(REFERENCE_SAMPLES) % classes
        keys = HashKeys.of(self.evaluation.seed, range(REFERENCE_SAMPLES)).fold("references")
        real = self.train.images, self.train.labels
        held_out, gaussian, copied = REFERENCES
        return [
            *self.measure(held_out, self.held_out.images, self.held_out.labels),
            *self.measure(gaussian, pixel_gaussian(*real, wanted, keys), wanted),
            *self.measure(copied, copies(*real, wanted, keys), wanted),
        ]

    @cached_property
    def _nearest_held_out(self) -> Tensor:
        return nearest_distances(self.held_out.images, self.train.images).quantile(0.5)

    def _real(self, split: str) -> LabelledSet:
        dataset = self.evaluation.data.build(split)
        batch = dataset[range(len(dataset))]
        assert batch.cond.label is not None
        return self._labelled(batch.x, batch.cond.label)

    def _labelled(self, images: Tensor, labels: Tensor) -> LabelledSet:
        return LabelledSet(images_as_stored(images), labels, extract(self.extractor, images))

    def _distance(self, a: LabelledSet, b: LabelledSet) -> Spread:
        counts = self.held_out.labels.bincount()
        return frechet_over_draws(
            a.features,
            b.features,
            classes=(a.labels, b.labels, counts),
            draws=self.evaluation.draws,
            seed=self.evaluation.seed,
        )


def protocols(records: Sequence[Record]) -> list[list[Record]]:
    """The records in lists whose distances can be compared: of one extractor, resizing, size and
    way. All that are no distances are in the first list, which has the judge's if there are any.
    """
    distances = [record for record in records if record.kind == "FD"]
    ways = sorted(dict.fromkeys(map(_way, distances)), key=lambda way: way[-1] is None)
    first = [r for r in records if r.kind != "FD" or _way(r) == ways[0]]
    return [first, *([r for r in distances if _way(r) == way] for way in ways[1:])]


def _way(record: Record) -> tuple[str, str | None, int, int | None]:
    return record.metric, record.resize, record.n, record.draws


def by_subject(records: Sequence[Record]) -> dict[str, dict[str, Record]]:
    """The newest record of every subject and measure; distances are keyed `fd_REFERENCE`.

    ValueError if distances of different extractors are mixed.
    """
    names = {record.metric for record in records if record.kind == "FD"}
    if len(names) > 1:
        raise ValueError(f"distances cannot be compared: {', '.join(sorted(names))}")
    rows: dict[str, dict[str, Record]] = {}
    for record in records:
        key = f"fd_{record.reference}" if record.kind == "FD" else record.metric
        rows.setdefault(record.subject or "", {})[key] = record
    return rows


def _with_sd(record: Record) -> str:
    return f"{record.value:.3f}" + (f" +- {record.sd:.3f}" if record.sd is not None else "")


COLUMNS: dict[str, tuple[str, Callable[[Record], str]]] = {
    "fd_train": ("FD to train", _with_sd),
    "fd_held-out": ("FD to held-out", _with_sd),
    "svm_accuracy": ("SVM", lambda r: f"{r.value:.3f}"),
    "nearest_ratio": ("nearest train / held-out's", lambda r: f"{r.value:.3f}"),
    "psnr": ("PSNR, dB", lambda r: f"{r.value:.1f}"),
    "bytes": ("bytes on disk", lambda r: f"{r.value:,.0f}"),
    "share_changed": ("weights changed", lambda r: f"{r.value:.1%}"),
    "score_verifier": ("verifier", lambda r: f"{r.value:.4f}"),
    "score_judge": ("judge, held out", lambda r: f"{r.value:.4f}"),
}


def tabulate(
    records: Sequence[Record],
    subjects: Sequence[str] | None = None,
    keys: Sequence[str] = tuple(COLUMNS),
) -> list[list[str]]:
    """Titles, then the cells of each subject (None: all); empty columns are left out."""
    found = by_subject(records)
    rows = {name: found[name] for name in (found if subjects is None else subjects)}
    kept = [key for key in keys if any(key in row for row in rows.values())]
    body = [
        [name, *(COLUMNS[key][1](row[key]) if key in row else "-" for key in kept)]
        for name, row in rows.items()
    ]
    return [["images", *(COLUMNS[key][0] for key in kept)], *body]


def caption(records: Sequence[Record]) -> str:
    """What the distances in a table are, in full."""
    first = next((record for record in records if record.kind == "FD"), None)
    if first is None:
        return "No distances were measured."
    if first.draws is None:
        return f"{first.metric}: of {first.n} images; intervals are those of infinitely many."
    return (
        f"{first.metric}: mean and sd over {first.draws} draws of {first.n} against "
        f"{first.n_reference} images with equal class counts; held-out images themselves score "
        f"{first.floor:.3f}, the floor. Not comparable with an Inception FID."
    )


def table(records: Sequence[Record]) -> str:
    """Every record as aligned text."""
    return f"{caption(records)}\n{aligned(tabulate(records))}"
