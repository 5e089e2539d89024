"""What a caption of `shapes` asks for, read from its words, and a fixed list of prompts to ask.

Source: the list is made like that of Ghosh et al. 2023, "GenEval: An Object-Focused Framework for
Evaluating Text-to-Image Alignment": one category for each kind of caption.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, permutations, product

from genvis.data.scenes import (
    BACKGROUNDS,
    COLORS,
    COUNTS,
    PHRASES,
    SHAPES,
    SIZES,
    Rule,
    a,
    held_out,
    plural,
)
from genvis.random import uniforms

PLURALS = tuple(plural(shape) for shape in range(len(SHAPES)))


@dataclass(frozen=True)
class Wanted:
    """An object: numbers in `SHAPES`, `COLORS`, `SIZES`; None is left open."""

    shape: int
    color: int | None = None
    size: int | None = None


@dataclass(frozen=True)
class Spec:
    """What must be there: every object, `things[0]` left of (relation 0) or above (1) `things[1]`,
    and a background.
    """

    type: str
    things: tuple[Wanted, ...]
    relation: int | None = None
    background: int | None = None

    @property
    def held_out(self) -> tuple[Rule, ...]:
        """The rules by which no training caption asks for this."""
        number = len(self.things) if self.type == "count" else None
        return held_out([(w.shape, w.color) for w in self.things], number, self.relation)


Read = tuple[tuple[Wanted, ...], int | None]  # things and relation


def _any(names: Iterable[str]) -> str:
    return f"({'|'.join(names)})"


SHAPE, PLURAL, COLOR, SIZE, COUNT, PAPER = map(
    _any, (SHAPES, PLURALS, COLORS, SIZES, COUNTS, BACKGROUNDS)
)
PHRASE = _any(phrase for phrases in PHRASES for phrase in phrases)
FORMS = {
    "single": f"an? {SHAPE}",
    "color": f"an? {COLOR} {SHAPE}",
    "size": f"an? {SIZE} {COLOR} {SHAPE}",
    "count": f"{COUNT} (?:{COLOR} )?{PLURAL}",
    "two": f"an? {SHAPE} and an? {SHAPE}",
    "position": f"an? {SHAPE} {PHRASE} an? {SHAPE}",
    "color_attr": f"an? {COLOR} {SHAPE} and an? {COLOR} {SHAPE}",
}


def parse(caption: str) -> Spec:
    """ValueError for what is no caption of `shapes`."""
    text = " ".join(caption.lower().split())
    for type, form in FORMS.items():
        if found := re.fullmatch(f"{form}(?: on a {PAPER} background)?", text):
            *words, paper = found.groups()
            things, relation = READ[type](*words)
            return Spec(type, things, relation, BACKGROUNDS.index(paper) if paper else None)
    raise ValueError(
        f"the prompt {caption!r} is no caption of shapes, such as 'a small red heart', 'a star "
        "above a circle', 'a red heart and a blue ring' or 'three rings on a black background'"
    )


def _wanted(shape: str, color: str | None = None, size: str | None = None) -> Wanted:
    return Wanted(
        SHAPES.index(shape),
        None if color is None else COLORS.index(color),
        None if size is None else SIZES.index(size),
    )


def _several(count: str, color: str | None, shapes: str) -> Read:
    thing = _wanted(SHAPES[PLURALS.index(shapes)], color)
    return (thing,) * (2 + COUNTS.index(count)), None


def _placed(first: str, phrase: str, second: str) -> Read:
    relation = next(k for k, phrases in enumerate(PHRASES) if phrase in phrases)
    things = _wanted(first), _wanted(second)
    return things if phrase == PHRASES[relation][0] else things[::-1], relation


READ: dict[str, Callable[..., Read]] = {  # what the words of each form say
    "single": lambda shape: ((_wanted(shape),), None),
    "color": lambda color, shape: ((_wanted(shape, color),), None),
    "size": lambda size, color, shape: ((_wanted(shape, color, size),), None),
    "count": _several,
    "two": lambda first, second: ((_wanted(first), _wanted(second)), None),
    "position": _placed,
    "color_attr": lambda c, first, d, second: ((_wanted(first, c), _wanted(second, d)), None),
}


def benchmark() -> tuple[str, ...]:
    """532 prompts: 8 single, 64 color, 64 size, 32 count, 28 two, 224 position, 112 color_attr."""
    return tuple(_prompts())


def _prompts() -> Iterator[str]:
    yield from (a(shape) for shape in SHAPES)
    yield from (a(color, shape) for shape in SHAPES for color in COLORS)
    for s, c in product(range(8), range(8)):
        yield a(SIZES[(s + c) % 2], COLORS[c], SHAPES[s])
    yield from (f"{count} {shapes}" for shapes in PLURALS for count in COUNTS)
    yield from (f"{a(one)} and {a(other)}" for one, other in combinations(SHAPES, 2))
    for one, other in permutations(SHAPES, 2):
        yield from (f"{a(one)} {phrase} {a(other)}" for phrases in PHRASES for phrase in phrases)
    for k, (one, other) in enumerate(combinations(SHAPES, 2)):
        left = uniforms(3, 0, k)
        for _ in range(4):
            first, second = int(next(left) * 8), int(next(left) * 7)
            second += second >= first
            yield f"{a(COLORS[first], one)} and {a(COLORS[second], other)}"
