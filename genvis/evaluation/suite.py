"""A whole protocol in one config: what looks at the images, what is measured, against what.

Everything lands in one folder that can be left and taken up again: `samples/`, `reference/` and
`against/` hold features by parts (`observe`), and images where they are kept.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Protocol

from genvis.config import config, dump
from genvis.devices import processes
from genvis.evaluation import MEASURES, SCORERS
from genvis.evaluation.against import REFERENCES, ReferenceConfig
from genvis.evaluation.extraction import ExtractorConfig, HeadedExtractor
from genvis.evaluation.files import NpzImages
from genvis.evaluation.generated import Generated
from genvis.evaluation.keep import KEEP
from genvis.evaluation.measures import Frechet, Measure, scores
from genvis.evaluation.modified import changes, cost
from genvis.evaluation.observe import Observer, Seen, observe
from genvis.evaluation.paired import Pairs, check_paired
from genvis.evaluation.records import Record
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

    def report(
        self, source: str, against: str | None = None, folder: str | Path | None = None
    ) -> tuple[list[Record], str]:
        """Every record of the images of `source`, and of `against`, a model with the same keys that
        the first is a change of; and all of them as a table. Run by each of the launched processes.
        """
        extractor = self.extractor.build()
        images = source_of(source).open(self.making, self.chunk)
        base = None if against is None else source_of(against).open(self.making, self.chunk)
        folder = self._folder(images, base) if folder is None else Path(folder)
        reference = None
        if self.reference is not None:
            reference = self.reference.open(extractor, folder / "reference", self.chunk)
        if base is None:
            seen = self._see(images, extractor, folder / "samples")
            records = self._records(source, images, seen, reference)
            return records, board(records)
        check_paired(images, base)
        made = isinstance(base, Generated)  # made once: pairs are read from the file
        first = self._see(base, extractor, folder / "against", "npz" if made else "none")
        stored = NpzImages(folder / "against" / "samples.npz") if made else base
        pairs = Pairs(stored, None if self.lpips is None else LPIPS.from_weights(self.lpips))
        seen = self._see(images, extractor, folder / "samples", None, [pairs])
        records = [
            *self._records(str(against), base, first, reference),
            *self._records(source, images, seen, reference),
            *self._stamp(source, images, changes(seen, first, reference)),
        ]
        return records, board(records)

    def _see(
        self,
        images: Images,
        extractor: HeadedExtractor,
        folder: Path,
        keep: str | None = None,
        observers: Sequence[Observer] = (),
    ) -> Seen:
        keeping = KEEP[keep or self.keep](folder)
        watching: list[Observer] = [keeping, *(score.build() for score in self.scores), *observers]
        seen = observe(images, extractor, folder, chunk=self.chunk, observers=watching)
        if processes().is_main_process:
            keeping.finish(seen.parts)
        processes().wait_for_everyone()
        return seen

    def _records(
        self, subject: str, images: Images, seen: Seen, reference: Reference | None
    ) -> list[Record]:
        measured = [record for each in self.measures for record in each(seen, reference)]
        return self._stamp(subject, images, [*measured, *scores(seen), *cost(images)])

    def _stamp(self, subject: str, images: Images, records: Sequence[Record]) -> list[Record]:
        made = isinstance(images, Generated)
        keys = f"0..{len(images) - 1} of seed {self.making.seed}" if made else None
        plain = dump(self)
        return [
            replace(record, subject=subject, config=plain, keys=keys, seed=self.making.seed)
            for record in records
        ]

    def _folder(self, *sets: Images | None) -> Path:
        """A place that the same evaluation finds again."""
        known = [dump(self), *(None if each is None else each.identity for each in sets)]
        digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
        return Path("runs", "evaluations", digest[:16])
