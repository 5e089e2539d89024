"""Scenes of `shapes` with something changed that their caption says, so that it is no longer true.

For measuring what tells right from wrong: checkers, CLIPs, verifiers.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from genvis.data.scenes import BACKGROUNDS, SHAPES, Scene, Thing
from genvis.random import uniforms

Attribute = Literal["shape", "color", "size", "count", "relation", "background"]


def attributes(scene: Scene) -> tuple[Attribute, ...]:
    """What the caption says."""
    says: dict[Attribute, bool] = {
        "shape": True,
        "color": scene.type in ("color", "size", "color_attr")
        or (scene.type == "count" and scene.swap),
        "size": scene.type == "size",
        "count": scene.type == "count",
        "relation": scene.type == "position",
        "background": scene.names_background,
    }
    return tuple(attribute for attribute, said in says.items() if said)


def altered(scene: Scene, chosen: Sequence[Attribute], seed: int = 0) -> Scene:
    """The scene with the chosen attributes changed; its `relation` stays that of the caption.

    ValueError for an attribute that its caption leaves open.
    """
    for k, attribute in enumerate(chosen):
        if attribute not in attributes(scene):
            raise ValueError(f"{scene.caption!r} says nothing of its {attribute}")
        u = next(uniforms(5, seed, k))
        scene = CHANGES[attribute](scene, u)
    return scene


def _shape(scene: Scene, u: float) -> Scene:
    return _repainted(scene, "shape", u)


def _color(scene: Scene, u: float) -> Scene:
    return _repainted(scene, "color", u)


def _repainted(scene: Scene, field: str, u: float) -> Scene:
    """One object, of a count all of them, with a shape or color that nothing there has."""
    taken = {getattr(thing, field) for thing in scene.things}
    free = [value for value in range(len(SHAPES)) if value not in taken]
    value: dict[str, Any] = {field: free[int(u * len(free))]}
    changed = len(scene.things) if scene.type == "count" else 1
    new = tuple(replace(thing, **value) for thing in scene.things[:changed])
    return replace(scene, things=new + scene.things[changed:])


def _size(scene: Scene, u: float) -> Scene:
    (thing,) = scene.things
    r = (0.13 + 0.04 * u) if thing.size else (0.26 + 0.06 * u)
    inside = [min(max(at, r + 0.05), 1 - r - 0.05) for at in (thing.cx, thing.cy)]
    new = replace(thing, size=1 - thing.size, r=r, cx=inside[0], cy=inside[1])
    return replace(scene, things=(new,))


def _count(scene: Scene, u: float) -> Scene:
    """One object less, or one more in a cell of the grid that is free."""
    things = scene.things
    if len(things) == 5 or (len(things) > 2 and u < 0.5):
        return replace(scene, things=things[:-1])
    cells = {_cell(thing) for thing in things}
    free = [cell for cell in range(9) if cell not in cells]
    row, column = divmod(free[int(u * len(free))], 3)
    new = replace(things[0], cx=(column + 0.5) / 3, cy=(row + 0.5) / 3)
    return replace(scene, things=(*things, new))


def _cell(thing: Thing) -> int:
    return 3 * int(3 * thing.cy) + int(3 * thing.cx)


def _relation(scene: Scene, u: float) -> Scene:
    """The two change places."""
    a, b = scene.things
    moved = replace(a, cx=b.cx, cy=b.cy), replace(b, cx=a.cx, cy=a.cy)
    return replace(scene, things=moved)


def _background(scene: Scene, u: float) -> Scene:
    step = 1 + int(u * (len(BACKGROUNDS) - 1))
    return replace(scene, background=(scene.background + step) % len(BACKGROUNDS))


CHANGES = {
    "shape": _shape,
    "color": _color,
    "size": _size,
    "count": _count,
    "relation": _relation,
    "background": _background,
}
