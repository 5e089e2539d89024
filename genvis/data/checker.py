"""What is in an image of `shapes`, by geometry alone, and whether it is what a prompt asks for.

No learning: colors are unmixed from the background, components are matched with the eight outlines.
Made for clean images of 32 pixels and more; at 16 a verdict is a lower bound.
Letters: n image side; K the eight shapes; u v an object's coordinates; X Y a centroid, S an area in
the unit square; b the background's color, a how much of a color covers a pixel.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from genvis.data.drawing import coverage
from genvis.data.scenes import PALETTE, PAPER, SHAPES, Scene, Thing
from genvis.data.specs import Spec, Wanted

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

INKS = np.array(list(PALETTE.values()), float)  # (8, 3)
PAPERS = np.array(list(PAPER.values()), float)  # (3, 3)
# of an outline with r = 1: its area, and its centroid's v (all are symmetric in u)
AREAS = {
    "circle": 3.1416,
    "square": 3.0953,
    "triangle": 1.8487,
    "diamond": 1.56,
    "cross": 2.2612,
    "ring": 2.1913,
    "star": 1.3225,
    "heart": 2.7689,
}
DOWN = {"triangle": 0.2329, "heart": -0.1508}
BLURS = (0.0, 0.6, 1.0)  # pixels: renderers and decoders differ in how soft they draw
NEIGHBOURS = np.ones((3, 3), bool)

LEAST_AREA = 0.006  # of the image: less is noise
KNOWN = 0.6  # overlap with the best outline, below which an object is of no shape
LARGE = 0.215  # radius
APART = 0.10  # how far "left of" and "above" are at least


@dataclass(frozen=True)
class Object:
    """overlaps: of each of the K outlines with what is there, in [0, 1]; shape: the best of them,
    None if even that does not fit; color: a number in `COLORS`; center and radius in the unit
    square.
    """

    overlaps: tuple[float, ...]
    color: int
    center: tuple[float, float]
    r: float

    @property
    def shape(self) -> int | None:
        best = int(np.argmax(self.overlaps))
        return best if self.overlaps[best] >= KNOWN else None

    @property
    def size(self) -> int:
        return int(self.r >= LARGE)

    def fits(self, wanted: Wanted) -> bool:
        return (
            self.shape == wanted.shape
            and wanted.color in (None, self.color)
            and wanted.size in (None, self.size)
        )

    def degree(self, wanted: Wanted) -> float:
        """The mean over what is asked: overlap with the outline asked for, or for a right color or
        size with the best one.
        """
        best = max(self.overlaps)
        parts = [self.overlaps[wanted.shape]]
        parts += [best * (wanted.color == self.color)] if wanted.color is not None else []
        parts += [best * (wanted.size == self.size)] if wanted.size is not None else []
        return fmean(parts)


@dataclass(frozen=True)
class Found:
    """What an image shows."""

    objects: tuple[Object, ...]
    background: int

    def strict(self, spec: Spec) -> bool:
        """Exactly what is asked for, and nothing else."""
        return len(self.objects) == len(spec.things) and self.lenient(spec)

    def lenient(self, spec: Spec) -> bool:
        """What is asked for is there, whatever else is; of a count, exactly so many."""
        if spec.background not in (None, self.background):
            return False
        if spec.type == "count":
            return sum(each.fits(spec.things[0]) for each in self.objects) == len(spec.things)
        return any(
            all(map(Object.fits, chosen, spec.things)) and _in_place(chosen, spec.relation)
            for chosen in permutations(self.objects, len(spec.things))
        )

    def soft(self, spec: Spec) -> float:
        """How much of it is there, in [0, 1]: the mean over the objects asked for, the relation and
        the background; what is missing, wrong or too much counts as 0. For search to climb.
        """
        missing = max(0, len(spec.things) - len(self.objects))
        extra = max(0, len(self.objects) - len(spec.things))
        there = len(spec.things) - missing
        rest = [0.0] * (missing + extra)
        if spec.background is not None:
            rest.append(float(spec.background == self.background))
        if spec.type == "count":
            degrees = sorted((each.degree(spec.things[0]) for each in self.objects), reverse=True)
            return fmean([*degrees[:there], *rest])
        ways = permutations((*self.objects, *[None] * missing), len(spec.things))
        return max(fmean([*_parts(way, spec), *rest[missing:]]) for way in ways)


def _parts(way: tuple[Object | None, ...], spec: Spec) -> Iterator[float]:
    """The degree of every object asked for, and of the relation between them."""
    degrees = [
        0.0 if each is None else each.degree(wanted)
        for each, wanted in zip(way, spec.things, strict=True)
    ]
    yield from degrees
    if spec.relation is not None:
        chosen = tuple(each for each in way if each is not None)
        placed = len(chosen) == len(way) and _in_place(chosen, spec.relation)
        yield fmean(degrees) * placed


def _in_place(chosen: tuple[Object, ...], relation: int | None) -> bool:
    """Whether the first is left of the second (0) or above it (1); True where nothing is asked."""
    if relation is None:
        return True
    steps = np.subtract(chosen[1].center, chosen[0].center)
    along, across = steps[relation], steps[1 - relation]
    return bool(along >= APART and along >= abs(across))


def truth(scene: Scene) -> Found:
    """What a faultless detector finds in a scene's image."""
    objects = []
    for thing in scene.things:
        overlaps = tuple(float(k == thing.shape) for k in range(len(SHAPES)))
        objects.append(Object(overlaps, thing.color, (thing.cx, thing.cy), thing.r))
    return Found(tuple(objects), scene.background)


def detect(image: NDArray[np.uint8]) -> Found:
    """What is in an image (n, n, 3) uint8. ValueError for another shape."""
    if image.ndim != 3 or image.shape[0] != image.shape[1] or image.shape[2] != 3:
        raise ValueError(f"an image must be (n, n, 3), got {image.shape}")
    x, n = image.astype(float), len(image)
    b = np.median(np.concatenate([x[0], x[-1], x[1:-1, 0], x[1:-1, -1]]), axis=0)
    cover = _unmix(x, b)  # (n, n, 8)
    most = cover.own
    labels, count = ndimage.label(most >= 0.5, NEIGHBOURS)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    kept = [k for k in range(1, count + 1) if areas[k] >= LEAST_AREA * n * n]
    objects = []
    for k in kept:
        inside = labels == k
        solid = inside & (most >= 0.8)
        shown = np.median(x[solid if solid.any() else inside], axis=0)
        color = int(np.argmin(((INKS - shown) ** 2).sum(1)))
        near = ndimage.binary_dilation(inside, NEIGHBOURS, iterations=2 if n >= 24 else 1)
        others = np.isin(labels, [j for j in kept if j != k])
        mask = np.clip(cover.of_each[..., color], 0, 1) * (near & ~others)
        objects.append(_matched(mask, color))
    return Found(tuple(objects), int(np.argmin(((PAPERS - b) ** 2).sum(1))))


@dataclass(frozen=True)
class _Cover:
    """of_each (n, n, 8): how much of a pixel each color covers, if it is that one; own (n, n): of
    the color that explains the pixel best.
    """

    of_each: Floats
    own: Floats


def _unmix(x: Floats, b: Floats) -> _Cover:
    """Pixels as mixtures of the background and one color: this keeps the soft edge of red on white
    from being read as pink.
    """
    away, delta = x - b, INKS - b  # (n, n, 3), (8, 3)
    along = away @ delta.T
    length = np.maximum((delta**2).sum(1), 1)  # 0 of the background's own color, which covers none
    a = np.clip(along / length, 0, 1.1)
    left = a * (a * length - 2 * along)  # |away - a delta|^2 less |away|^2
    best = left.argmin(-1)[..., None]
    return _Cover(a, np.take_along_axis(a, best, -1)[..., 0])


def _matched(mask: Floats, color: int) -> Object:
    """The object whose soft mask (n, n) this is."""
    n = len(mask)
    at = (np.arange(n) + 0.5) / n
    total = mask.sum()
    x, y = (mask.sum(0) @ at) / total, (mask.sum(1) @ at) / total
    things, templates = zip(*(_outline(k, x, y, total / n**2, n) for k in range(8)), strict=True)
    blurred = [ndimage.gaussian_filter(templates, (0, sigma, sigma)) for sigma in BLURS]
    overlaps = np.max([_overlaps(mask, each) for each in blurred], axis=0)
    best = things[int(overlaps.argmax())]
    return Object(tuple(overlaps.tolist()), color, (best.cx, best.cy), best.r)


def _outline(shape: int, x: float, y: float, area: float, n: int) -> tuple[Thing, Floats]:
    """A shape with this centroid and area, and how much of each pixel it covers (n, n)."""
    name = SHAPES[shape]
    r = math.sqrt(area / AREAS[name])
    thing = Thing(shape, 0, 0, x, y - DOWN.get(name, 0.0) * r, r)
    template = np.zeros((n, n))
    rows, columns, alpha = coverage(thing, n, samples=4)
    template[rows, columns] = alpha[..., 0]
    return thing, template


def _overlaps(mask: Floats, templates: Floats) -> Floats:
    """sum min / sum max of a mask (n, n) with each of the templates (K, n, n)."""
    least, most = np.minimum(mask, templates), np.maximum(mask, templates)
    shares: Floats = least.sum((1, 2)) / most.sum((1, 2))
    return shares
