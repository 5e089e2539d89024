"""What is reported of samples and a reference, each with its interval and its extractor's name.

A measure is a config: `__call__(seen, reference)` gives its records, which do not say yet whose
images they are. Intervals are 95 %, by the jackknife over random groups of the samples
(`jackknife`): how the value would move with other samples; the reference is taken as it is.
Letters: N images, D features, G groups.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from torch import Tensor

from genvis.config import config
from genvis.evaluation import inception_score
from genvis.evaluation.cmmd import cmmd
from genvis.evaluation.extraction import Features, frechet_name, metric_name
from genvis.evaluation.extrapolate import frechet_infinity
from genvis.evaluation.frechet import expected_floor, frechet_distance
from genvis.evaluation.jackknife import jackknife, jackknife_statistics, random_groups
from genvis.evaluation.kid import kid, kid_subsets
from genvis.evaluation.manifold import manifold
from genvis.evaluation.observe import Seen
from genvis.evaluation.paired import SCORE
from genvis.evaluation.records import Record, stamped
from genvis.evaluation.reference import Reference
from genvis.evaluation.spread import bootstrap
from genvis.features.inception import is_published

ENOUGH = 10  # images a feature, below which the jackknife's interval is too narrow
PAPERS = 50_000  # images in published Inception distances


class Measure(Protocol):
    def __call__(self, seen: Seen, reference: Reference | None) -> list[Record]: ...


@config
class Frechet:
    """FD (FID by the published Inception); of its spatial features, sFD (sFID). The value is that
    of all N images, biased upward by what fewer images than infinitely many do; `infinite` beside
    it and the interval are free of the bias of order 1/N.
    """

    head: Literal["features", "spatial"] = "features"
    groups: int = 10

    def __post_init__(self) -> None:
        _check_groups(self.groups, least=2)

    def __call__(self, seen: Seen, reference: Reference | None) -> list[Record]:
        real = _needed(reference)
        known = real.statistics(self.head)
        if seen.n < 4:
            raise ValueError(f"a distance with an interval needs at least 4 images, got {seen.n}")
        groups = seen.groups(self.head, min(self.groups, seen.n // 2))
        found = jackknife_statistics(groups, lambda each: frechet_distance(each, known))
        held_out = real.held_out.get(self.head)
        expected = expected_floor(known.covariance, seen.n, real.n)
        return [
            _record(
                frechet_name(seen.extractor, seen.sha256, self.head),
                found.value,
                seen,
                real,
                error=found.error,
                interval=found.interval(),
                floor=None if held_out is None else frechet_distance(held_out, known),
                expected_floor=expected,
                beside={"infinite images": found.corrected},
                warning=_warning(seen.n, known.dim, expected),
                comparable_to_published=_published(seen, real) and real.published,
            )
        ]


@config
class FrechetInfinity:
    """FD extrapolated to infinitely many images from subsets of rising size."""

    sizes: int = 15
    seed: int = 0

    def __call__(self, seen: Seen, reference: Reference | None) -> list[Record]:
        real = _needed(reference)
        ours = Features(seen.rows("features"), seen.extractor, seen.sha256)
        found = frechet_infinity(
            ours, real.statistics("features"), sizes=self.sizes, seed=self.seed
        )
        name = metric_name("infinite-FD", seen.extractor, seen.sha256)
        return [_record(name, found.value, seen, real, beside={"fit error": found.standard_error})]


@config
class KID:
    """The kernel distance, by random subsets as published; unbiased at any N."""

    subsets: int = 100
    size: int = 1000
    groups: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        _check_groups(self.groups)

    def __call__(self, seen: Seen, reference: Reference | None) -> list[Record]:
        real = _needed(reference)
        ours, theirs = seen.rows("features"), real.rows("features")
        found = kid_subsets(ours, theirs, subsets=self.subsets, size=self.size, seed=self.seed)
        spread = _spread(ours, self.groups, lambda rows: kid(rows, theirs), found.mean)
        return [_named("KID", found.mean, seen, real, sd=found.sd, **spread)]


@config
class PrecisionRecall:
    """Improved precision and recall, density and coverage; k is 3 in the ADM suite."""

    k: int = 3
    groups: int = 10

    def __post_init__(self) -> None:
        _check_groups(self.groups)

    def __call__(self, seen: Seen, reference: Reference | None) -> list[Record]:
        real = _needed(reference)
        ours, theirs = seen.rows("features"), real.rows("features")
        found = manifold(theirs, ours, k=self.k)
        without = [manifold(theirs, rows, k=self.k) for rows in _leave_out(ours, self.groups)]
        return [
            _named(
                name,
                getattr(found, name),
                seen,
                real,
                n_reference=len(theirs),
                **_around(getattr(found, name), [getattr(each, name) for each in without]),
                comparable_to_published=_published(seen, real) and real.published and self.k == 3,
            )
            for name in ("precision", "recall", "density", "coverage")
        ]


@config
class InceptionScore:
    """IS of an extractor's logits; the convention, part of the name, says how images are cut."""

    convention: Literal["blocks", "splits", "whole"] = "blocks"
    groups: int = 10

    def __post_init__(self) -> None:
        _check_groups(self.groups)

    def __call__(self, seen: Seen, reference: Reference | None) -> list[Record]:
        logits = seen.rows("logits")
        ways: dict[str, Callable[[Tensor], float]] = {
            "blocks": lambda rows: inception_score.blocks(rows).mean,
            "splits": lambda rows: inception_score.splits(rows).mean,
            "whole": inception_score.whole,
        }
        way = ways[self.convention]
        value = way(logits)
        spread = _spread(logits, self.groups, way, value)
        published = _published(seen, None) and self.convention == "blocks"
        kind = f"IS-{self.convention}"
        return [_named(kind, value, seen, None, **spread, comparable_to_published=published)]


@config
class CMMD:
    """The Gaussian-kernel distance; published for CLIP ViT-L/14-336 embeddings and sigma 10."""

    sigma: float = 10.0
    groups: int = 10

    def __post_init__(self) -> None:
        _check_groups(self.groups)

    def __call__(self, seen: Seen, reference: Reference | None) -> list[Record]:
        real = _needed(reference)
        ours, theirs = seen.rows("features"), real.rows("features")
        value = cmmd(ours, theirs, sigma=self.sigma)
        spread = _spread(
            ours, self.groups, lambda rows: cmmd(rows, theirs, sigma=self.sigma), value
        )
        return [_named("CMMD", value, seen, real, **spread)]


def scores(seen: Seen) -> list[Record]:
    """The mean of every score of single images, with a bootstrap interval and 5th percentile."""
    found = []
    for name in sorted(name for name in seen.names if name.startswith(SCORE)):
        values = seen.rows(name)
        interval = bootstrap(values)
        found.append(
            stamped(
                metric=name.removeprefix(SCORE),
                value=float(values.mean()),
                n=seen.n,
                error=float(values.std()) / seen.n**0.5,
                interval=(interval.low, interval.high),
                beside={"fifth percentile": float(values.quantile(0.05))},
            )
        )
    return found


def _needed(reference: Reference | None) -> Reference:
    if reference is None:
        raise ValueError("a distance needs a reference in the evaluation's config")
    return reference


def _named(kind: str, value: float, seen: Seen, real: Reference | None, **fields: Any) -> Record:
    return _record(metric_name(kind, seen.extractor, seen.sha256), value, seen, real, **fields)


def _record(name: str, value: float, seen: Seen, real: Reference | None, **fields: Any) -> Record:
    """The record of a value in an extractor's features."""
    against = {}
    if real is not None:
        against = {"reference": real.name, "reference_sha256": real.sha256, "n_reference": real.n}
    return stamped(
        metric=name,
        value=value,
        n=seen.n,
        extractor=seen.extractor,
        extractor_sha256=seen.sha256,
        **{**against, **fields},
    )


def _published(seen: Seen, real: Reference | None) -> bool:
    """Whether papers report this number: 50,000 images, ADM's resizer, the published weights."""
    known = is_published(seen.extractor, seen.sha256) and seen.resize == "tf1_bilinear"
    return known and seen.n == PAPERS and (real is None or real.published)


def _warning(n: int, dim: int, bias: float) -> str | None:
    if n <= dim:
        return f"{n} images for {dim} features: the value is biased upward by {bias:.3g} or more"
    if n < ENOUGH * dim:
        return f"{n} images for {dim} features: the interval may be too narrow"
    return None


def _leave_out(rows: Tensor, groups: int) -> list[Tensor]:
    member = random_groups(len(rows), max(1, groups)).to(rows.device)
    return [rows[member != g] for g in range(groups)]


def _spread(
    rows: Tensor, groups: int, value: Callable[[Tensor], float], whole: float
) -> dict[str, Any]:
    return _around(whole, [value(each) for each in _leave_out(rows, groups)])


def _around(value: float, without: Sequence[float]) -> dict[str, Any]:
    """Error and interval about a value, from those without each group; nothing without groups."""
    if not without:
        return {}
    found = jackknife(value, without)
    half = (found.interval()[1] - found.interval()[0]) / 2
    return {"error": found.error, "interval": (value - half, value + half)}


def _check_groups(groups: int, least: int = 0) -> None:
    if groups < least or groups == 1:
        raise ValueError(f"groups must be at least {max(2, least)}, got {groups}")
