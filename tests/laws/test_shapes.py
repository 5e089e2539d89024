"""`shapes` is the sheet's dataset to the last bit, and its splits keep their promise."""

import hashlib
from itertools import pairwise, product

import numpy as np
import pytest
import torch

from genvis.data.drawing import render
from genvis.data.scenes import (
    COLORS,
    PALETTE,
    PAPER,
    SHAPES,
    SPLITS,
    TYPES,
    Scene,
    Split,
    colored_thing,
    held_out,
    plural,
    scene,
)
from genvis.data.shapes import ShapesConfig
from genvis.images import to_uint8
from genvis.random import HashKeys, stream, uniforms


def digest(scene: Scene, n: int = 32) -> str:
    return hashlib.sha256(render(scene, n).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("split", "index", "type", "caption", "sha"),
    [
        ("train", 0, "color", "a pink star on a black background", "8d0feb139a881f25"),
        ("train", 1, "position", "a triangle to the right of a square", "91b92e4ca8051708"),
        ("train", 2, "color", "a green triangle on a white background", "8fac95c7c572a8c4"),
        ("train", 3, "single", "a cross on a black background", "703ba598b7261e57"),
        (
            "train", 4, "color_attr", "a green cross and a purple heart on a black background",
            "32e7878f05c70e4a",
        ),
        ("train", 5, "count", "four yellow stars", "2290bb66994d709d"),
        ("heldout", 0, "size", "a large green ring on a gray background", "786dab077d06eefa"),
        ("heldout", 1, "count", "three triangles on a gray background", "9ecac5631202195b"),
        ("heldout", 2, "count", "four blue triangles", "ed75fb3d4d4a8901"),
    ],
)  # fmt: skip
def test_scenes_and_their_images_are_those_of_the_sheet(
    split: Split, index: int, type: str, caption: str, sha: str
) -> None:
    found = scene(0, split, index)
    assert (found.type, found.caption, digest(found)) == (type, caption, sha)


@pytest.mark.parametrize(
    ("index", "middle", "corner"),
    [
        (0, (204, 98, 161), (11, 7, 18)),
        (1, (10, 15, 10), (10, 15, 10)),
        (2, (47, 148, 49), (246, 240, 243)),
        (3, (10, 16, 16), (10, 16, 16)),
        (4, (9, 10, 11), (9, 10, 11)),
        (5, (248, 244, 238), (248, 244, 238)),
    ],
)
def test_pixels(index: int, middle: tuple[int, ...], corner: tuple[int, ...]) -> None:
    image = render(scene(0, "train", index), 32)
    assert (tuple(image[16, 16]), tuple(image[0, 0])) == (middle, corner)


def test_the_objects_of_scene_one() -> None:
    square, triangle = scene(0, "train", 1).things
    assert (SHAPES[square.shape], COLORS[square.color], square.size) == ("square", "yellow", 0)
    assert (SHAPES[triangle.shape], COLORS[triangle.color]) == ("triangle", "purple")
    assert triangle.size == 1
    found = [(t.cx, t.cy, t.r) for t in (square, triangle)]
    wanted = [(0.265333, 0.578660, 0.129948), (0.756001, 0.468707, 0.194019)]
    np.testing.assert_allclose(found, wanted, atol=5e-7)


@pytest.mark.parametrize(
    ("index", "label", "sha"),
    [(0, 55, "8d0feb139a881f25"), (1, 10, "462a5845e8caea63"), (2, 17, "8fac95c7c572a8c4")],
)
def test_the_class_task(index: int, label: int, sha: str) -> None:
    assert digest(colored_thing(0, "train", index)) == sha
    batch = ShapesConfig(task="class", count=3).build("train")[[index]]
    assert batch.cond.label is not None
    assert batch.cond.label.tolist() == [label]
    pixels = to_uint8(batch.x)[0].permute(1, 2, 0).contiguous().numpy()
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == sha


def test_streams() -> None:
    """The uniforms that scenes read one by one are those of keys."""
    found = uniforms(1, 0, 0, 0, 0)
    assert next(found) == (0x2ADBFE5D10CE6EE9 >> 11) * 2.0**-53
    signed = stream(1, 0, 0, 0, 0) - 2**64
    keyed = HashKeys(torch.tensor([signed])).uniform((20,))[0].tolist()
    assert keyed[1:] == [next(found) for _ in range(19)]
    assert next(uniforms(2, -1)) == next(uniforms(2, 2**64 - 1))


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_compositions_are_in_their_split_and_only_there(split: Split) -> None:
    scenes = [scene(0, split, i) for i in range(1500)]
    assert {bool(s.held_out) for s in scenes} == {split == "heldout"}
    counts = [sum(s.type == type for s in scenes) for type in TYPES]
    shares = (0.15, 0.20, 0.10, 0.20, 0.10, 0.15, 0.10)
    for count, share in zip(counts, shares, strict=True):  # five standard errors
        assert abs(count - 1500 * share) < 5 * (1500 * share * (1 - share)) ** 0.5


def test_what_is_held_out() -> None:
    pairs = {
        f"{SHAPES[s]}-{COLORS[c]}"
        for s, c in product(range(8), range(8))
        if held_out([(s, c)], None, None)
    }
    assert pairs == {
        "circle-red", "square-orange", "triangle-blue", "diamond-pink", "cross-purple",
        "ring-green", "star-cyan", "heart-yellow",
    }  # fmt: skip
    safe = {s: next(c for c in range(8) if (3 * s + c) % 8) for s in range(8)}
    counts = {
        (n, SHAPES[s])
        for s, n in product(range(8), range(2, 6))
        if held_out([(s, safe[s])] * n, n, None)
    }
    assert counts == {(2, "ring"), (3, "diamond"), (4, "square"), (5, "heart")}
    relations = [
        bool(held_out([(a, safe[a]), (b, safe[b])], None, relation))
        for a, b, relation in product(range(8), range(8), range(2))
        if a != b
    ]
    assert (sum(relations), len(relations)) == (14, 112)


def test_captions_say_what_is_there() -> None:
    """Every caption, word by word, against the ground truth."""
    long = 0
    for index in range(1000):
        found = scene(3, "train", index)
        words = found.caption.split()
        long = max(long, len(words))
        said = [w for w in words if w in SHAPES]
        names = [SHAPES[t.shape] for t in found.things]
        if found.type == "count":
            number = ("two", "three", "four", "five").index(words[0]) + 2
            assert number == len(found.things)
            assert words[1 + found.swap] == plural(found.things[0].shape)
        else:
            assert said == (names[::-1] if found.swap and len(names) == 2 else names)
        if found.type == "position":
            first, second = found.things[:: -1 if found.swap else 1]
            if "left" in words or "right" in words:
                assert ("left" in words) == (first.cx < second.cx)
            else:
                assert ("above" in words) == (first.cy < second.cy)
        if found.type in ("color", "size", "color_attr"):
            order = found.things[::-1] if found.swap else found.things
            colors = [COLORS[t.color] for t in order]
            assert [w for w in words if w in COLORS] == colors
        if found.type == "size":
            assert ("large" in words) == (found.things[0].r >= 0.215)
        for article, word in pairwise(words):
            assert article not in ("a", "an") or (article == "an") == (word[0] in "aeiou")
        assert ("background" in words) == found.names_background
    assert long <= 12


def test_a_scene_is_the_same_at_every_size() -> None:
    """Averaging a large render gives the small one, but for the sub-samples at edges."""
    for index in range(8):
        large, small = (render(scene(0, "val", index), n).astype(float) for n in (128, 32))
        means = large.reshape(32, 4, 32, 4, 3).mean((1, 3))
        assert abs(means - small).mean() < 1


def test_colors_are_told_apart() -> None:
    colors = np.array([*PALETTE.values(), *PAPER.values()])
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=-1)
    assert distances[~np.eye(len(colors), dtype=bool)].min() > 60


def test_objects_never_touch() -> None:
    for index in range(300):
        things = scene(1, "train", index).things
        for i, a in enumerate(things):
            assert min(a.cx - a.r, a.cy - a.r, 1 - a.cx - a.r, 1 - a.cy - a.r) > 0
            for b in things[:i]:
                assert max(abs(a.cx - b.cx), abs(a.cy - b.cy)) > a.r + b.r


@pytest.mark.parametrize(
    ("config", "split", "message"),
    [
        ({"task": "class"}, "heldout", "split of task class must be in"),
        ({}, "test", "split of task text must be in"),
        ({"size": 8}, "train", r"size must be in 16\.\.256, got 8"),
        ({"count": 0}, "train", "count and size must be at least 1"),
    ],
)
def test_what_is_refused(config: dict[str, object], split: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShapesConfig(**config).build(split)  # type: ignore[arg-type]
