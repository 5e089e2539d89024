"""The scenes of `shapes`: what is where, as a function of (seed, split, index), and its caption.

Every scene comes from counted and hashed random numbers (`genvis.random`), read in a fixed order,
so it is the same on any machine. Some compositions are held out of train and val: they tell a model
that composes from one that remembers.
Letters: x right and y down in the unit square; u, v an object's own coordinates, (x - cx) / r.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

from genvis.random import uniforms

Split = Literal["train", "val", "heldout"]
Color = tuple[float, float, float]
Rule = Literal["pair", "count", "relation"]

SPLITS: tuple[Split, ...] = ("train", "val", "heldout")
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring", "star", "heart")
PALETTE = {
    "red": (214, 39, 40),
    "green": (44, 150, 44),
    "blue": (31, 80, 220),
    "yellow": (240, 215, 30),
    "purple": (130, 50, 180),
    "orange": (250, 130, 20),
    "cyan": (40, 200, 215),
    "pink": (245, 120, 190),
}
PAPER = {"black": (12, 12, 12), "gray": (128, 128, 128), "white": (243, 243, 243)}
COLORS, BACKGROUNDS = tuple(PALETTE), tuple(PAPER)
SIZES = ("small", "large")
COUNTS = ("two", "three", "four", "five")
TYPES = ("single", "color", "size", "count", "two", "position", "color_attr")
UP_TO = (0.15, 0.35, 0.45, 0.65, 0.75, 0.90, 1.0)  # cumulative share of each type
PHRASES = (("to the left of", "to the right of"), ("above", "below"))  # of relation 0 and 1


@dataclass(frozen=True)
class Thing:
    """One object: shape, color and size are numbers in `SHAPES`, `COLORS` and `SIZES`."""

    shape: int
    color: int
    size: int
    cx: float
    cy: float
    r: float
    jitter: Color = (0.0, 0.0, 0.0)  # added to its color, of 255


@dataclass(frozen=True)
class Scene:
    """The ground truth of one image. relation 0: things[0] is left of things[1]; 1: above it."""

    type: str
    things: tuple[Thing, ...]
    background: int
    relation: int | None
    jitter: Color  # of the background
    names_background: bool
    swap: bool

    @property
    def held_out(self) -> tuple[Rule, ...]:
        number = len(self.things) if self.type == "count" else None
        pairs = [(thing.shape, thing.color) for thing in self.things]
        return held_out(pairs, number, self.relation)

    @property
    def caption(self) -> str:
        if not self.names_background:
            return self._said()
        return f"{self._said()} on a {BACKGROUNDS[self.background]} background"

    def _said(self) -> str:
        first, second = (self.things * 2)[:2]
        if self.type == "count":
            color = f"{COLORS[first.color]} " * self.swap
            return f"{COUNTS[len(self.things) - 2]} {color}{plural(first.shape)}"
        if self.swap and len(self.things) == 2:
            first, second = second, first
        if self.type == "single":
            return a(SHAPES[first.shape])
        if self.type == "color":
            return a(COLORS[first.color], SHAPES[first.shape])
        if self.type == "size":
            return a(SIZES[first.size], COLORS[first.color], SHAPES[first.shape])
        if self.type == "two":
            return f"{a(SHAPES[first.shape])} and {a(SHAPES[second.shape])}"
        if self.type == "color_attr":
            pair = [a(COLORS[thing.color], SHAPES[thing.shape]) for thing in (first, second)]
            return " and ".join(pair)
        assert self.relation is not None
        phrase = PHRASES[self.relation][self.swap]
        return f"{a(SHAPES[first.shape])} {phrase} {a(SHAPES[second.shape])}"


def a(*words: str) -> str:
    """The words after their article."""
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def plural(shape: int) -> str:
    return SHAPES[shape] + ("es" if SHAPES[shape] == "cross" else "s")


def held_out(
    things: Sequence[tuple[int, int | None]], number: int | None, relation: int | None
) -> tuple[Rule, ...]:
    """The rules by which a composition is held out: a shape in one color, a number of a shape, an
    ordered relation. things: shapes and colors; what is None is not said, and no rule's.
    """
    shapes = [shape for shape, _ in things]
    fires: dict[Rule, bool] = {
        "pair": any(color is not None and (3 * s + color) % 8 == 0 for s, color in things),
        "count": number is not None and (shapes[0] + 2 * number) % 8 == 1,
        "relation": relation is not None and (shapes[0] + 2 * shapes[1] + 3 * relation) % 8 == 0,
    }
    return tuple(rule for rule, fired in fires.items() if fired)


def scene(seed: int, split: Split, index: int) -> Scene:
    """Scene `index`, of any type; held-out compositions are in the split heldout and only there."""
    where = (seed, SPLITS.index(split), index)
    u = next(uniforms(1, *where, 0))
    type = next(name for name, bound in zip(TYPES, UP_TO, strict=True) if u < bound)
    attempts = (_compose(type, *where, attempt) for attempt in count(1))
    return next(s for s in attempts if bool(s.held_out) == (split == "heldout"))


def colored_thing(seed: int, split: Split, index: int) -> Scene:
    """Scene `index` of the class-conditional task: one object in a color, nothing held out."""
    return _compose("color", seed, SPLITS.index(split), index, 1)


class _Draws:
    """Uniforms in the order in which a scene takes them."""

    def __init__(self, *words: int) -> None:
        self.left = uniforms(*words)

    def below(self, n: int) -> int:
        return int(next(self.left) * n)

    def range(self, low: float, high: float) -> float:
        return low + (high - low) * next(self.left)

    def color(self) -> Color:
        return self.range(-6, 6), self.range(-6, 6), self.range(-6, 6)

    def two_different(self) -> tuple[int, int]:
        first, second = self.below(8), self.below(7)
        return first, second + (second >= first)


def _compose(type: str, seed: int, split: int, index: int, attempt: int) -> Scene:
    draw = _Draws(2, seed, split, index, attempt)
    background, relation = draw.below(3), None
    if type in ("single", "color", "size"):
        things = [_alone(draw)]
    elif type == "count":
        things = _several(draw)
    else:
        things, relation = _pair(draw)
    colored = [Thing(**{**vars(thing), "jitter": draw.color()}) for thing in things]
    return Scene(
        type, tuple(colored), background, relation, draw.color(), draw.range(0, 1) < 0.25,
        swap=draw.below(2) == 1,
    )  # fmt: skip


def _alone(draw: _Draws) -> Thing:
    shape, color, size = draw.below(8), draw.below(8), draw.below(2)
    r = draw.range(0.26, 0.32) if size else draw.range(0.13, 0.17)
    cx, cy = draw.range(r + 0.05, 1 - r - 0.05), draw.range(r + 0.05, 1 - r - 0.05)
    return Thing(shape, color, size, cx, cy, r)


def _several(draw: _Draws) -> list[Thing]:
    """Two to five alike, in different cells of a grid of nine."""
    shape, color, n = draw.below(8), draw.below(8), 2 + draw.below(4)
    cells = list(range(9))
    for i in range(n):
        j = i + draw.below(9 - i)
        cells[i], cells[j] = cells[j], cells[i]
    things = []
    for cell in cells[:n]:
        r = draw.range(0.115, 0.130)
        cx = (cell % 3 + 0.5) / 3 + draw.range(-0.02, 0.02)
        cy = (cell // 3 + 0.5) / 3 + draw.range(-0.02, 0.02)
        things.append(Thing(shape, color, 0, cx, cy, r))
    return things


def _pair(draw: _Draws) -> tuple[list[Thing], int]:
    """Two of different shapes and colors, side by side (relation 0) or one above the other (1)."""
    shapes, colors, relation = draw.two_different(), draw.two_different(), draw.below(2)
    things = []
    for shape, color, along in zip(shapes, colors, ((0.24, 0.28), (0.72, 0.76)), strict=True):
        size = draw.below(2)
        r = draw.range(0.17, 0.195) if size else draw.range(0.12, 0.15)
        main, off = draw.range(*along), draw.range(0.40, 0.60)
        cx, cy = (main, off) if relation == 0 else (off, main)
        things.append(Thing(shape, color, size, cx, cy, r))
    return things, relation
