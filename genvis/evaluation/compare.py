"""Is the difference between two measured values larger than chance would make it?"""

from dataclasses import dataclass
from math import hypot

from genvis.evaluation.records import Record

SAME = ("metric", "extractor_sha256", "resize", "reference_sha256", "n", "n_reference")


@dataclass(frozen=True)
class Difference:
    """value: second minus first; noise: half the width of its 95 % interval, had the two sets been
    drawn apart (sets of the same keys differ by less chance: see `modified`).
    """

    metric: str
    value: float
    noise: float

    @property
    def real(self) -> bool:
        return abs(self.value) > self.noise

    def __str__(self) -> str:
        verdict = "larger than the noise" if self.real else "within the noise"
        return f"{self.metric}: {self.value:+.4g} +- {self.noise:.2g}, {verdict}"


@dataclass(frozen=True)
class Refused:
    """A measure that both subjects have, but not of the same thing."""

    why: str

    def __str__(self) -> str:
        return self.why


def difference(first: Record, second: Record) -> Difference:
    """ValueError unless both measured the same thing, at the same sizes, and know their spread."""
    for name in SAME:
        a, b = getattr(first, name), getattr(second, name)
        if a != b:
            raise ValueError(f"{first.metric}: cannot be compared: {name} is {a} and {b}")
    noise = hypot(_half(first), _half(second))
    return Difference(first.metric, second.value - first.value, noise)


def comparisons(records: list[Record], first: str, second: str) -> list[Difference | Refused]:
    """Of every measure that both subjects have, the newest. ValueError if a subject is unknown, or
    if they share no measure.
    """
    found = {
        name: {(r.metric, r.reference): r for r in records if r.subject == name and _spread(r)}
        for name in (first, second)
    }
    for name, known in found.items():
        if not known:
            subjects = ", ".join(sorted({r.subject for r in records if r.subject}))
            raise ValueError(f"no measured values with a spread of {name!r}; there are {subjects}")
    shared = [key for key in found[first] if key in found[second]]
    if not shared:
        lists = [", ".join(sorted({metric for metric, _ in known})) for known in found.values()]
        raise ValueError(f"nothing to compare: {first} has {lists[0]}; {second} has {lists[1]}")
    return [_compared(found[first][key], found[second][key]) for key in shared]


def _compared(first: Record, second: Record) -> Difference | Refused:
    try:
        return difference(first, second)
    except ValueError as error:
        return Refused(str(error))


def _spread(record: Record) -> bool:
    return record.interval is not None or record.sd is not None


def _half(record: Record) -> float:
    if record.interval is not None:
        return (record.interval[1] - record.interval[0]) / 2
    if record.sd is None:
        raise ValueError(f"{record.metric}: has no spread, so nothing tells chance from change")
    return 2 * record.sd  # between draws that share images: not their mean's, which is narrower
