"""How reliable the checker of `shapes` is: verdicts on images whose truth is known, as a table.

Example: python benchmarks/shapes_checker.py --count 5000
For every kind of caption, images of the split val: `right` is the share of clean images that
satisfy their caption, `agree` that of clean images judged like the truth by the caption of another
image, `changed` that of images rejected once one attribute was changed (of a fifth of them); then
`right` under noise and blur (of a twentieth).
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from genvis import console
from genvis.data.altered import altered, attributes
from genvis.data.checker import detect, truth
from genvis.data.drawing import render
from genvis.data.scenes import TYPES, Scene, scene
from genvis.data.specs import parse
from genvis.random import HashKeys

Pixels = NDArray[np.uint8]


def scenes(type: str, count: int) -> Iterator[Scene]:
    """The first `count` scenes of a type."""
    index, found = 0, 0
    while found < count:
        one = scene(0, "val", index)
        index += 1
        if one.type == type:
            found += 1
            yield one


def noisy(image: Pixels, sigma: float, row: int) -> Pixels:
    noise = HashKeys.of(7, [row]).normal(image.shape)[0].numpy()
    return np.clip(np.round(image + sigma * noise), 0, 255).astype(np.uint8)


def blurred(image: Pixels, sigma: float) -> Pixels:
    return np.round(ndimage.gaussian_filter(image.astype(float), (sigma, sigma, 0))).astype(
        np.uint8
    )


def shares(type: str, count: int, size: int) -> dict[str, float]:
    """The columns of one row of the table."""
    kept = list(scenes(type, count))
    names = ("right", "agree", "changed", "noise 16", "noise 32", "blur 0.7", "blur 1.0")
    hits: dict[str, list[bool]] = {name: [] for name in names}
    for i, one in enumerate(console.progress(kept, type, count)):
        image, spec = render(one, size), parse(one.caption)
        other = parse(kept[i - 1].caption)
        found = detect(image)
        hits["right"].append(found.strict(spec))
        hits["agree"].append(found.strict(other) == truth(one).strict(other))
        if i < count // 5:
            said = attributes(one)
            wrong = altered(one, [said[i % len(said)]], seed=i)
            assert not truth(wrong).strict(spec), one.caption
            hits["changed"].append(not detect(render(wrong, size)).strict(spec))
        if i < count // 20:
            soft = {
                "noise 16": noisy(image, 16, i),
                "noise 32": noisy(image, 32, i),
                "blur 0.7": blurred(image, 0.7),
                "blur 1.0": blurred(image, 1.0),
            }
            for name, version in soft.items():
                hits[name].append(detect(version).strict(spec))
    return {name: float(np.mean(of)) for name, of in hits.items()}


def main() -> None:
    parser = console.parser(__doc__)
    parser.add_argument("--count", type=int, default=5000, help="images of each kind of caption")
    parser.add_argument("--size", type=int, default=32)
    args = parser.parse_args()
    for k, type in enumerate(TYPES):
        row = shares(type, args.count, args.size)
        if k == 0:
            print(f"| {args.count} a row, {args.size} px | {' | '.join(row)} |")
            print("|---" * (len(row) + 1) + "|")
        cells = " | ".join(f"{value:.4f}" for value in row.values())
        print(f"| {type} | {cells} |", flush=True)


if __name__ == "__main__":
    console.run(main)
