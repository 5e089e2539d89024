"""Scenes of `shapes` as images: exact inside tests on a grid of sub-samples, in float64.

Letters: n image side, S sub-samples a side of a pixel; u, v an object's own coordinates.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from genvis.data.scenes import PALETTE, PAPER, SHAPES, Scene, Thing

Floats = NDArray[np.float64]
Inside = NDArray[np.bool_]

# the right half of a five-pointed star's outline, from its top to its lowest notch
STAR = (
    (0.0, -1.0), (0.264503, -0.364058), (0.951057, -0.309017),
    (0.427975, 0.139058), (0.587785, 0.809017), (0.0, 0.45),
)  # fmt: skip


def _star(u: Floats, v: Floats) -> Inside:
    """Inside by the even-odd rule: how many edges a ray to the right crosses."""
    outline = [*STAR, *((-x, y) for x, y in STAR[-2:0:-1])]
    inside = np.zeros(np.broadcast(u, v).shape, bool)
    for (x1, y1), (x2, y2) in zip(outline, [*outline[1:], outline[0]], strict=True):
        spans = (y1 > v) != (y2 > v)
        inside ^= spans & (u < (x2 - x1) * (v - y1) / (y2 - y1) + x1)
    return inside


def _heart(u: Floats, v: Floats) -> Inside:
    p, q = 1.15 * u, -1.15 * v + 0.12
    return (p**2 + q**2 - 1) ** 3 - p**2 * q**3 <= 0


def _cross(u: Floats, v: Floats) -> Inside:
    u, v = abs(u), abs(v)
    return ((u <= 0.34) & (v <= 1)) | ((v <= 0.34) & (u <= 1))


INSIDE: dict[str, Callable[[Floats, Floats], Inside]] = {  # each within |u|, |v| <= 1
    "circle": lambda u, v: u**2 + v**2 <= 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.88,
    "triangle": lambda u, v: (v <= 0.85) & (abs(u) <= (v + 1) / 1.85),
    "diamond": lambda u, v: abs(u) / 0.78 + abs(v) <= 1,
    "cross": _cross,
    "ring": lambda u, v: (u**2 + v**2 >= 0.55**2) & (u**2 + v**2 <= 1),
    "star": _star,
    "heart": _heart,
}


def render(scene: Scene, n: int) -> NDArray[np.uint8]:
    """The image (n, n, 3) uint8 of a scene; the same scene at every n."""
    inks, papers = tuple(PALETTE.values()), tuple(PAPER.values())
    image = np.empty((n, n, 3))
    image[:] = np.add(papers[scene.background], scene.jitter)
    for thing in scene.things:
        rows, columns, alpha = coverage(thing, n)
        ink = np.add(inks[thing.color], thing.jitter)
        image[rows, columns] = image[rows, columns] * (1 - alpha) + ink * alpha
    return np.clip(np.floor(image + 0.5), 0, 255).astype(np.uint8)


def coverage(thing: Thing, n: int, samples: int | None = None) -> tuple[slice, slice, Floats]:
    """The rows and columns that an object may touch, and the share (h, w, 1) of each pixel it
    covers. samples: a side of a pixel, 8 below 64 pixels and 4 from there on by default.
    """
    samples = samples or (8 if n < 64 else 4)
    (rows, y), (columns, x) = (_axis(at, thing.r, n, samples) for at in (thing.cy, thing.cx))
    u, v = (x[None] - thing.cx) / thing.r, (y[:, None] - thing.cy) / thing.r
    inside = INSIDE[SHAPES[thing.shape]](u, v)
    blocks = inside.reshape(len(y) // samples, samples, len(x) // samples, samples)
    covered = blocks.sum((1, 3), dtype=np.int16)  # which is faster than their mean, and as exact
    return rows, columns, (covered / samples**2)[:, :, None]


def _axis(center: float, r: float, n: int, samples: int) -> tuple[slice, Floats]:
    """The pixels within r of the center on one axis, and their sub-samples' coordinates."""
    first, last = max(0, int((center - r) * n)), min(n, int((center + r) * n) + 1)
    return slice(first, last), (np.arange(first * samples, last * samples) + 0.5) / (samples * n)
