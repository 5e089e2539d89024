"""What is reported of samples and a reference, each with its interval and its extractor's name.

A measure is a config: `check` refuses what could not be measured, before any image is made;
`__call__(seen, reference)` gives its records, which do not say yet whose images they are. Intervals
are 95 %, by the jackknife over random groups of the samples (`jackknife`): how the value would move
with other samples; the reference is taken as it is.
Letters: N images, D features, G groups.
"""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from math import hypot
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
ADM_ROWS = 10_000  # images of an ADM reference, for published precision and recall
STRAIGHT = 2  # images a feature in a subset, below which FD is no line in 1/N


class Measure(Protocol):
    """It may have `observers`, which then look at the images beside the extractor."""

    def check(self, heads: AbstractSet[str], reference: Reference | None, n: int) -> None:
        """ValueError unless n images can be measured by an extractor that has these heads."""
        ...

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

    def check(self, heads: AbstractSet[str], reference: Reference | None, n: int) -> None:
        _check_head(heads, self.head)
        _needed(reference).statistics(self.head)
        _check_count("a distance with an interval", n, 4)

    def __call__(self, seen: Seen, reference: Reference | None) -> list[Record]:
        real = _needed(reference)
        known = real.statistics(self.head)
        groups = seen.groups(self.head, min(self.groups, seen.n // 2))
        found = jackknife_statistics(groups, lambda each: frechet_distance(each, known))
        floor = real.floor(self.head, seen.n)
        expected = expected_floor(known.covariance, seen.n, real.n)
        return [
            _record(
                frechet_name(seen.extractor, seen.sha256, self.head),
                found.value,
                seen,
                real,
                error=found.error,
                interval=found.interval(),
                floor=None if floor is None else frechet_distance(floor, known),
                n_floor=None if floor is None else floor.n,
                expected_floor=expected,
                beside={"infinite images": found.corrected},
                warning=_warning(seen.n, known.dim, expected),
                comparable_to_published=_published(seen, real),
            )
        ]


@config
class FrechetInfinity:
    """FD extrapolated to infinitely many images from subsets of rising size, the smallest with
    `STRAIGHT` images a feature where half of them are so many. Its error joins the line's, of the
    choice of subsets, with the jackknife's, of the choice of images.
    """

    sizes: int = 15
    groups: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        _check_groups(self.groups, least=2)
        if self.sizes < 3:
            raise ValueError(f"sizes must be at least 3 for a line with an error, got {self.sizes}")

    def check(self, heads: AbstractSet[str], reference: Reference | None, n: int) -> None:
        _needed(reference).statistics("features")
        _check_count(f"a line through {self.sizes} sizes", n, max(4, self.sizes + 1))

    def __call__(self, seen: Seen, reference: Reference | None) -> list[Record]:
        real, n = _needed(reference), seen.n
        known = real.statistics("features")
        wanted = max(min(5000, n // 10), STRAIGHT * known.dim)
        smallest = max(2, min(wanted, n // 2, n - self.sizes + 1))
        ours = Features(seen.rows("features"), seen.extractor, seen.sha256)
        line = frechet_infinity(ours, known, sizes=self.sizes, smallest=smallest, seed=self.seed)
        groups = seen.groups("features", min(self.groups, n // 2))
        images = jackknife_statistics(groups, lambda each: frechet_distance(each, known))
        error = hypot(images.error, line.standard_error)
        found = replace(images, corrected=line.value, error=error)
        bent = f"subsets of {smallest} images for {known.dim} features: FD is no line in 1/N there"
        return [
            _named(
                "infinite-FD",
                line.value,
                seen,
                real,
                error=error,
                interval=found.interval(),
                beside={"fit error": line.standard_error},
                warning=bent if smallest < STRAIGHT * known.dim else None,
            )
        ]


@config
class KID:
    """The kernel distance over all pairs, unbiased at any N; beside it mean and sd over random
    subsets, as published (`subsets: 0` leaves them out).
    """

    subsets: int = 100
    size: int = 1000
    groups: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        _check_groups(self.groups)
        if self.subsets < 0 or self.subsets == 1 or self.size < 2:
            raise ValueError(
                f"subsets must be 0 or at least 2, of at least 2 images, got {self.subsets} of "
                f"{self.size}"
            )

    def check(self, heads: AbstractSet[str], reference: Reference | None, n: int) -> None:
        _needed(reference).check_rows("features")
        _check_count("a kernel distance with an interval", n, 4)
        if self.subsets:
            _check_count(f"KID by subsets of {self.size}", n, self.size)

    def __call__(self, seen: Seen, reference: Reference | None) -> list[Record]:
        real = _needed(reference)
        ours, theirs = seen.rows("features"), real.rows("features")
        value = kid(ours, theirs)
        spread = _spread(ours, self.groups, lambda rows: kid(rows, theirs), value)
        beside = {}
        if self.subsets:
            cut = kid_subsets(ours, theirs, subsets=self.subsets, size=self.size, seed=self.seed)
            beside = {"mean of subsets": cut.mean, "sd of subsets": cut.sd}
        return [_named("KID", value, seen, real, **spread, beside=beside)]


@config
class PrecisionRecall:
    """Improved precision and recall, density and coverage; k is 3 in the ADM suite."""

    k: int = 3
    groups: int = 10

    def __post_init__(self) -> None:
        _check_groups(self.groups)
        if self.k < 1:
            raise ValueError(f"k must be at least 1 neighbour, got {self.k}")

    def check(self, heads: AbstractSet[str], reference: Reference | None, n: int) -> None:
        _needed(reference).check_rows("features")
        _check_count(f"a {self.k}-th neighbour", _fewest(n, self.groups), self.k + 1)

    def __call__(self, seen: Seen, reference: Reference | None) -> list[Record]:
        real = _needed(reference)
        ours, theirs = seen.rows("features"), real.rows("features")
        asked = self.k == 3 and len(theirs) == ADM_ROWS and _published(seen, real)
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
                comparable_to_published=asked and name in ("precision", "recall"),
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

    def check(self, heads: AbstractSet[str], reference: Reference | None, n: int) -> None:
        _check_head(heads, "logits")
        least = 10 if self.convention == "splits" else 2
        _check_count("an inception score", _fewest(n, self.groups), least)

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
        if not self.sigma > 0:
            raise ValueError(f"sigma must be positive, got {self.sigma}")

    def check(self, heads: AbstractSet[str], reference: Reference | None, n: int) -> None:
        _needed(reference).check_rows("features")
        _check_count("a kernel distance", _fewest(n, self.groups), 2)

    def __call__(self, seen: Seen, reference: Reference | None) -> list[Record]:
        real = _needed(reference)
        ours, theirs = seen.rows("features"), real.rows("features")
        value = cmmd(ours, theirs, sigma=self.sigma)
        spread = _spread(
            ours, self.groups, lambda rows: cmmd(rows, theirs, sigma=self.sigma), value
        )
        return [_named("CMMD", value, seen, real, **spread)]


def scores(seen: Seen, kind: str = SCORE, **paired: Any) -> list[Record]:
    """The mean of every score of single images, with a bootstrap interval and 5th percentile;
    of pairs, with what they were paired with.
    """
    found = []
    for name in sorted(name for name in seen.names if name.startswith(kind)):
        values = seen.rows(name)
        interval = bootstrap(values)
        found.append(
            stamped(
                metric=name.removeprefix(kind),
                value=float(values.mean()),
                n=seen.n,
                error=float(values.std()) / seen.n**0.5,
                interval=(interval.low, interval.high),
                beside={"fifth percentile": float(values.quantile(0.05))},
                **paired,
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
        resize=seen.resize,
        **{**against, **fields},
    )


def _published(seen: Seen, real: Reference | None) -> bool:
    """Whether papers report this number: 50,000 images, ADM's resizer, the published weights."""
    known = is_published(seen.extractor, seen.sha256) and seen.resize == "tf1_bilinear"
    return known and seen.n == PAPERS and (real is None or real.published)


def _warning(n: int, dim: int, bias: float) -> str | None:
    if n <= dim:
        return (
            f"{n} images for {dim} features: the value is biased upward by about {bias:.3g}, to "
            "first order, and the interval does not hold"
        )
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


def _fewest(n: int, groups: int) -> int:
    """Images without the largest group."""
    return n - -(-n // groups) if groups else n


def _check_head(heads: AbstractSet[str], head: str) -> None:
    if head not in heads:
        raise ValueError(f"the extractor gives no {head}; there are {', '.join(sorted(heads))}")


def _check_count(what: str, n: int, least: int) -> None:
    if n < least:
        raise ValueError(f"{what} needs at least {least} images, got {n}")


def _check_groups(groups: int, least: int = 0) -> None:
    if groups < least or groups == 1:
        raise ValueError(f"groups must be at least {max(2, least)}, got {groups}")
