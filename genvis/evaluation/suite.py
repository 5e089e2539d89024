"""A whole protocol in one config: what looks at the images, what is measured, against what.

Everything lands in one folder that can be left and taken up again: `samples/`, `reference/` and
`against/` hold features by parts (`observe`), and images where they are kept; `records.jsonl` what
was measured, `*_cost.json` what a model costs.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Protocol

import torch

from genvis.config import config, dump
from genvis.devices import processes
from genvis.evaluation import MEASURES, SCORERS
from genvis.evaluation.against import REFERENCES, ReferenceConfig
from genvis.evaluation.extraction import ExtractorConfig, HeadedExtractor
from genvis.evaluation.files import NpzImages
from genvis.evaluation.keep import KEEP
from genvis.evaluation.measures import Frechet, Measure, scores
from genvis.evaluation.modified import changes, cost
from genvis.evaluation.observe import Observer, Seen, check_prompts, observe
from genvis.evaluation.paired import PAIR, Pairs, check_paired
from genvis.evaluation.records import Record, append, folder_of
from genvis.evaluation.reference import Reference
from genvis.evaluation.sources import Images, Making, source_of
from genvis.evaluation.tables import board
from genvis.features import EXTRACTORS
from genvis.features.lpips import LPIPS


class ScorerConfig(Protocol):
    def build(self) -> Observer: ...


@config
class Suite:
    """`making` is for sources that make images; `lpips` for pairs, where its weights are."""

    extractor: Annotated[ExtractorConfig, EXTRACTORS]
    reference: Annotated[ReferenceConfig, REFERENCES] | None = None
    measures: tuple[Annotated[Measure, MEASURES], ...] = (Frechet(),)
    scores: tuple[Annotated[ScorerConfig, SCORERS], ...] = ()
    lpips: Literal["alex", "vgg"] | None = None
    making: Making = Making()
    chunk: int = 64
    keep: Literal["none", "png", "npz"] = "none"

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"chunk must be at least 1 image, got {self.chunk}")

    def report(
        self, source: str, against: str | None = None, folder: str | Path | None = None
    ) -> tuple[list[Record], str]:
        """Every record of the images of `source`, and of `against`, a model with the same keys that
        the first is a change of; and all of them as a table. Run by each of the launched processes.
        """
        if self.lpips is not None and against is None:
            raise ValueError("lpips compares pairs: give --against, or leave it out")
        extractor = self.extractor.build()
        own = [each for measure in self.measures for each in getattr(measure, "observers", ())]
        scorers: list[Observer] = [*own, *(score.build() for score in self.scores)]
        lpips = None if self.lpips is None else LPIPS.from_weights(self.lpips)
        images = source_of(source).open(self.making, self.chunk)
        base = None if against is None else source_of(against).open(self.making, self.chunk)
        if base is not None:
            check_paired(images, base)
        every = [each for each in (images, base) if each is not None]
        for each in every:
            check_prompts(each, scorers)
        sets = [each.identity for each in every]
        folder = folder_of(dump(self), *sets) if folder is None else Path(folder)
        reference = None
        if self.reference is not None:
            reference = self.reference.open(extractor, folder / "reference", self.chunk)
        self._check(extractor, reference, len(images))
        records = []
        observers = [*scorers]
        if base is not None:
            made = base.seed is not None  # made once: pairs are read from the file
            first = self._see(
                base, extractor, folder / "against", scorers, "npz" if made else "none"
            )
            records += self._records(str(against), base, first, reference, folder / "against")
            stored = NpzImages(folder / "against" / "samples.npz") if made else base
            observers.append(Pairs(stored, lpips))
        seen = self._see(images, extractor, folder / "samples", observers)
        records += self._records(source, images, seen, reference, folder / "samples")
        if base is not None:
            to = {"reference": str(against), "n_reference": first.n}
            pairs = scores(seen, PAIR, reference_sha256=first.images_sha256, **to)
            records += self._stamp(source, images, [*pairs, *changes(seen, first, reference)])
        if processes().is_main_process:
            append(folder / "records.jsonl", *records)
        return records, board(records)

    def _check(self, extractor: HeadedExtractor, reference: Reference | None, n: int) -> None:
        """ValueError for what would fail only once the images are made."""
        blank = torch.zeros(1, 3, 64, 64)
        heads = frozenset(extractor.heads(blank)) if self.measures else frozenset()
        for measure in self.measures:
            measure.check(heads, reference, n)

    def _see(
        self,
        images: Images,
        extractor: HeadedExtractor,
        folder: Path,
        observers: Sequence[Observer],
        keep: str | None = None,
    ) -> Seen:
        keeping = KEEP[keep or self.keep](folder)
        watching: list[Observer] = [keeping, *observers]
        seen = observe(images, extractor, folder, chunk=self.chunk, observers=watching)
        if processes().is_main_process:
            keeping.finish(seen.parts)
        processes().wait_for_everyone()
        return seen

    def _records(
        self, subject: str, images: Images, seen: Seen, reference: Reference | None, folder: Path
    ) -> list[Record]:
        measured = [record for each in self.measures for record in each(seen, reference)]
        costs = cost(images, folder.with_name(f"{folder.name}_cost.json"))
        return self._stamp(subject, images, [*measured, *scores(seen), *costs])

    def _stamp(self, subject: str, images: Images, records: Sequence[Record]) -> list[Record]:
        seed, plain = images.seed, dump(self)
        keys = None if seed is None else f"0..{len(images) - 1} of seed {seed}"
        return [
            replace(record, subject=subject, config=plain, keys=keys, seed=seed)
            for record in records
        ]
