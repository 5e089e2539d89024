"""The checker of `shapes` against what is drawn: it accepts the truth, rejects what is one
attribute off, and reads every caption as it was meant.
"""

from collections import Counter
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from genvis.console import prompt_lines
from genvis.data.altered import altered, attributes
from genvis.data.checker import Found, Object, detect, truth
from genvis.data.drawing import render
from genvis.data.scenes import BACKGROUNDS, COLORS, PALETTE, SHAPES, SPLITS, TYPES, Scene, scene
from genvis.data.specs import Spec, Wanted, benchmark, parse
from genvis.evaluation.shapes_accuracy import KINDS, VERDICTS, Check, accuracies, wilson
from genvis.random import HashKeys
from genvis.types import Cond
from genvis.verifiers import VERIFIERS

EACH = 30  # scenes of a type; benchmarks/shapes_checker.py measures 5,000


def scenes(type: str, count: int = EACH, split: str = "val") -> list[Scene]:
    every = (scene(0, split, i) for i in range(100_000))  # type: ignore[arg-type]
    return list(islice((one for one in every if one.type == type), count))


def share(verdicts: list[bool]) -> float:
    return sum(verdicts) / len(verdicts)


# captions


@pytest.mark.parametrize("split", SPLITS)
def test_captions_are_read_as_what_made_them(split: str) -> None:
    for i in range(500):
        one = scene(2, split, i)  # type: ignore[arg-type]
        spec = parse(one.caption)
        assert spec.type == one.type
        assert spec.background == (one.background if one.names_background else None)
        assert spec.relation == (one.relation if one.type == "position" else None)
        found = sorted(wanted.shape for wanted in spec.things)
        assert found == sorted(thing.shape for thing in one.things)
        assert truth(one).strict(spec)
        # a prompt never says more than the scene, so that its rules are among the scene's
        assert set(spec.held_out) <= set(one.held_out)


@pytest.mark.parametrize(
    ("prompt", "spec"),
    [
        ("an star", Spec("single", (Wanted(6),))),
        ("A  Red HEART", Spec("color", (Wanted(7, 0),))),
        ("a ring below a star", Spec("position", (Wanted(6), Wanted(5)), 1)),
        ("a ring to the right of a star", Spec("position", (Wanted(6), Wanted(5)), 0)),
        ("two red crosses on a gray background", Spec("count", (Wanted(4, 0),) * 2, None, 1)),
    ],
)
def test_prompts_mean(prompt: str, spec: Spec) -> None:
    assert parse(prompt) == spec


@pytest.mark.parametrize(
    "prompt", ["", "heart", "a crimson heart", "six hearts", "a heart beside a ring", "two heart"]
)
def test_what_is_no_caption_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="is no caption of shapes"):
        parse(prompt)


def test_the_benchmark_asks_for_every_category() -> None:
    prompts = benchmark()
    specs = [parse(prompt) for prompt in prompts]
    assert Counter(spec.type for spec in specs) == {
        **{"single": 8, "color": 64, "size": 64, "count": 32, "two": 28},
        **{"position": 224, "color_attr": 112},
    }
    assert len(set(prompts)) > 525  # the pairs of colors are drawn, and two may be the same
    held = Counter((spec.type, rule) for spec in specs for rule in spec.held_out)
    assert {key: held[key] for key in held if key[0] != "color_attr"} == {
        **{("color", "pair"): 8, ("size", "pair"): 8},
        **{("count", "count"): 4, ("position", "relation"): 28},
    }
    assert prompts == prompt_lines("configs/shapes/prompts.txt")


# images


@pytest.mark.parametrize("type", TYPES)
def test_the_truth_is_accepted_and_told_from_other_truths(type: str) -> None:
    kept = scenes(type)
    found = [detect(render(one, 32)) for one in kept]
    specs = [parse(one.caption) for one in kept]
    pairs = [
        (seen.strict(spec), truth(one).strict(spec))
        for one, seen in zip(kept, found, strict=True)
        for spec in specs
    ]
    assert share([ours == theirs for ours, theirs in pairs]) >= 0.995
    assert all(seen.strict(spec) for seen, spec in zip(found, specs, strict=True))


@pytest.mark.parametrize("type", TYPES)
def test_one_attribute_off_is_rejected(type: str) -> None:
    verdicts = []
    for i, one in enumerate(scenes(type, EACH // 2)):
        for attribute in attributes(one):
            wrong = altered(one, [attribute], seed=i)
            spec = parse(one.caption)
            assert not truth(wrong).strict(spec)
            verdicts.append(not detect(render(wrong, 32)).strict(spec))
    assert share(verdicts) >= 0.99


def test_alterations_stay_scenes() -> None:
    """What was changed is drawn inside, apart, and of the types that there are."""
    for type in TYPES:
        for i, one in enumerate(scenes(type, EACH // 3)):
            wrong = altered(one, attributes(one), seed=i)
            assert all(
                thing.r + 0.01 < at < 1 - thing.r - 0.01
                for thing in wrong.things
                for at in (thing.cx, thing.cy)
            )
            assert len(detect(render(wrong, 64)).objects) == len(wrong.things)
    with pytest.raises(ValueError, match="says nothing of its size"):
        altered(scenes("single", 1)[0], ["size"])


@pytest.mark.parametrize("n", [16, 64])
def test_other_sizes(n: int) -> None:
    kept = [scene(1, "val", i) for i in range(EACH)]
    right = [detect(render(one, n)).strict(parse(one.caption)) for one in kept]
    assert share(right) >= (0.93 if n < 32 else 1)


def test_noise_of_six_percent_is_no_excuse() -> None:
    verdicts = []
    for i in range(EACH):
        one = scene(1, "val", i)
        noise = 16 * HashKeys.of(0, [i]).normal((32, 32, 3))[0].numpy()
        image = np.clip(np.round(render(one, 32) + noise), 0, 255).astype(np.uint8)
        verdicts.append(detect(image).strict(parse(one.caption)))
    assert share(verdicts) >= 0.93


def test_nothing_is_seen_in_nothing() -> None:
    blank = np.full((32, 32, 3), 243, np.uint8)
    found = detect(blank)
    assert found == Found((), BACKGROUNDS.index("white"))
    spec = parse("a heart on a white background")
    assert (found.strict(spec), found.lenient(spec)) == (False, False)
    assert found.soft(spec) == pytest.approx(0.5)  # the background is right
    noise = HashKeys.of(0, [0]).uniform((32, 32, 3))[0].numpy()
    assert not detect((255 * noise).astype(np.uint8)).strict(parse("a heart"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("color", COLORS)
def test_a_background_of_an_objects_color_hides_only_that_color(color: str) -> None:
    """Generated images need not keep to black, gray and white."""
    image = np.empty((32, 32, 3), np.uint8)
    image[:] = PALETTE[color]
    other = "cyan" if color != "cyan" else "red"
    image[10:22, 10:22] = PALETTE[other]
    (square,) = detect(image).objects
    assert (square.shape, square.color) == (SHAPES.index("square"), COLORS.index(other))


@pytest.mark.parametrize("shape", [(32, 32), (32, 16, 3), (3, 32, 32), (32, 32, 4)])
def test_an_image_is_square_and_has_three_channels(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="an image must be"):
        detect(np.zeros(shape, np.uint8))


# verdicts


def thing(
    shape: str, color: str = "red", x: float = 0.5, y: float = 0.5, r: float = 0.15
) -> Object:
    overlaps = tuple(0.9 if name == shape else 0.4 for name in SHAPES)
    return Object(overlaps, COLORS.index(color), (x, y), r)


def seen(*objects: Object, background: str = "black") -> Found:
    return Found(objects, BACKGROUNDS.index(background))


@pytest.mark.parametrize(
    ("prompt", "found", "strict", "lenient"),
    [
        ("a heart", seen(thing("heart")), True, True),
        ("a heart", seen(thing("heart"), thing("ring")), False, True),
        ("a heart", seen(thing("ring")), False, False),
        ("a heart on a white background", seen(thing("heart")), False, False),
        ("a large red heart", seen(thing("heart", r=0.215)), True, True),
        ("a small red heart", seen(thing("heart", r=0.215)), False, False),
        ("two hearts", seen(thing("heart"), thing("heart", "blue")), True, True),
        ("two red hearts", seen(thing("heart"), thing("heart", "blue")), False, False),
        ("two hearts", seen(*[thing("heart")] * 3), False, False),
        ("two hearts", seen(thing("heart"), thing("heart"), thing("ring")), False, True),
        ("a heart and a ring", seen(thing("ring"), thing("heart")), True, True),
        ("a red heart and a blue ring", seen(thing("heart"), thing("ring", "blue")), True, True),
        ("a red heart and a blue ring", seen(thing("heart", "blue"), thing("ring")), False, False),
        ("a heart above a ring", seen(thing("heart", y=0.3), thing("ring", y=0.4)), True, True),
        ("a heart above a ring", seen(thing("heart", y=0.3), thing("ring", y=0.39)), False, False),
        ("a ring below a heart", seen(thing("heart", y=0.3), thing("ring", y=0.7)), True, True),
        (
            "a heart above a ring",
            seen(thing("heart", x=0.1, y=0.3), thing("ring", x=0.6, y=0.7)),
            False,
            False,
        ),
    ],
)
def test_verdicts(prompt: str, found: Found, strict: bool, lenient: bool) -> None:
    assert (found.strict(parse(prompt)), found.lenient(parse(prompt))) == (strict, lenient)


def test_the_soft_score_falls_with_every_fault() -> None:
    spec = parse("a heart above a ring")
    right = seen(thing("heart", y=0.2), thing("ring", y=0.8))
    swapped = seen(thing("ring", y=0.2), thing("heart", y=0.8))
    one = seen(thing("heart", y=0.2))
    extra = seen(*right.objects, thing("star"))
    scores = [found.soft(spec) for found in (right, extra, swapped, one, seen())]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(0.9)
    assert scores[-1] == 0
    color = parse("a red heart")
    assert seen(thing("heart", "blue")).soft(color) == pytest.approx(0.45)
    counts = [seen(*[thing("heart")] * n).soft(parse("three hearts")) for n in range(6)]
    assert counts == pytest.approx([0, 0.3, 0.6, 0.9, 0.675, 0.54])


# where it is used


def batch(type: str) -> tuple[torch.Tensor, tuple[str, ...]]:
    kept = scenes(type, 4)
    pixels = torch.stack([torch.from_numpy(render(one, 32)).permute(2, 0, 1) for one in kept])
    return pixels, tuple(one.caption for one in kept)


def test_the_verifier_scores_images_by_their_prompts() -> None:
    pixels, prompts = batch("color_attr")
    images = pixels.float() / 127.5 - 1
    soft, strict = (
        VERIFIERS.build({"name": "shapes_checker", "form": f}).build() for f in ("soft", "strict")
    )
    right, wrong = Cond(prompts=prompts), Cond(prompts=prompts[1:] + prompts[:1])
    assert strict(images, right).tolist() == [1] * 4
    assert strict(images, wrong).tolist() == [0] * 4
    assert (soft(images, right) > soft(images, wrong)).all()
    assert (soft.name, strict.name) == ("shapes-checker-soft", "shapes-checker-strict")
    with pytest.raises(ValueError, match="'a cat' is no caption"):
        soft.check(Cond(prompts=("a cat",)))
    with pytest.raises(ValueError, match=r"needs cond\.prompts"):
        soft(images, Cond())


def test_accuracies_count_categories_the_same() -> None:
    """Of 4 + 8 images, one category all right, the other a quarter: 0.625, not half."""
    verdicts = torch.tensor([[1.0, 1, 1]] * 4 + [[1, 1, 1], [0, 1, 0.5], [0, 0, 0], [0, 0, 0]] * 2)
    single, color = TYPES.index("single"), TYPES.index("color")
    kinds = torch.tensor([[single, 0, 0, 0]] * 4 + [[color, 0, 0, 0], [color, 1, 0, 0]] * 4)
    found = {
        r.metric.removeprefix("accuracy[shapes-checker] "): r for r in accuracies(verdicts, kinds)
    }
    assert found["single"].value == 1
    assert found["color"].value == 0.25
    assert found["overall"].value == 0.625
    assert found["overall"].n == 12
    assert found["color"].beside == {"lenient": 0.5, "soft": 0.375}
    assert (found["color seen"].value, found["color held-out"].value) == (0.5, 0)
    assert found["held out by pair"].n == 4
    assert found["overall held-out"].value == 0
    assert found["single"].interval == pytest.approx((0.5101, 1), abs=1e-4)


def test_wilson() -> None:
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0.0, 20) == pytest.approx((0, 0.1611), abs=1e-4)


def test_what_is_checked_of_a_chunk() -> None:
    pixels, prompts = batch("count")
    padded = torch.cat([pixels, pixels[-1:]])
    found = Check()(padded, Cond(prompts=prompts), range(4))
    assert found[VERDICTS].shape == (4, 3)
    assert (found[VERDICTS][:, :2] == 1).all()
    assert (found[KINDS] == torch.tensor([TYPES.index("count"), 0, 0, 0])).all()
    with pytest.raises(ValueError, match="needs images with prompts"):
        Check()(padded, Cond(), range(4))


def test_the_truth_of_a_scene() -> None:
    one = scenes("position", 1)[0]
    found = truth(one)
    assert [o.shape for o in found.objects] == [t.shape for t in one.things]
    first: Any = replace(one.things[0], color=(one.things[0].color + 1) % 8)
    assert truth(replace(one, things=(first, one.things[1]))) != found
