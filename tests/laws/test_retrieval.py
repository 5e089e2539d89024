"""Retrieval on `shapes`: the ceiling is what knowing the scene allows; a network's hits are counted
with ties shared. Corruption: one attribute more at each step.
"""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genvis.data.altered import attributes
from genvis.data.scenes import TYPES, Scene, scene
from genvis.data.shapes import ShapesConfig
from genvis.evaluation.corruption import MOST, Corruption, chain
from genvis.evaluation.retrieval import Retrieval, ceiling, fitting, found
from genvis.features.clip import ImagesAndWords


def scenes(split: str, count: int) -> list[Scene]:
    return [scene(0, cast(Any, split), i) for i in range(count)]


@pytest.mark.parametrize(("split", "expected"), [("val", 0.874), ("heldout", 0.713)])
def test_the_ceiling_is_the_published_one(split: str, expected: float) -> None:
    """About 0.87 and 0.71 for 64 captions; the error of 1,024 images is 0.012."""
    assert ceiling(scenes(split, 1024)).mean().item() == pytest.approx(expected, abs=0.03)


def test_a_scenes_captions_are_its_own_grammar() -> None:
    """The true one is among them, each says something that is so, the longest leaves least open."""
    seen = set()
    for one in scenes("val", 60):
        fits = fitting(one)
        seen.add(one.type)
        assert one.caption in fits
        for caption, left in fits.items():
            said = [n for other, n in fits.items() if other.startswith(f"{caption} on a ")]
            assert caption.endswith("background") or said == [left / 3]  # one of three backgrounds
    assert seen == set(TYPES)


def test_the_ceiling_of_a_few_by_hand() -> None:
    plain = next(s for s in scenes("val", 200) if s.type == "size" and not s.names_background)
    twin = replace(plain, jitter=(1.0, 0.0, 0.0))  # another image with the same caption
    less = replace(plain, type="color")  # "a red star" fits a small red star too
    least = replace(plain, type="single")
    other = next(s for s in scenes("val", 200) if s.type == "position")
    assert ceiling([plain, twin], 2).tolist() == [0.5, 0.5]
    assert ceiling([plain, other], 2).tolist() == [1, 1]
    # the caption that says more is chosen, also for the images whose own says less
    assert ceiling([plain, less, least, other], 4).tolist() == [1, 0, 0, 1]
    with pytest.raises(ValueError, match="among must be from 2 to the 2 images, got 64"):
        ceiling([plain, twin])


@dataclass(frozen=True)
class Reader:
    """Words as one-hot vectors; images of one pixel whose red tells which word they are of."""

    vocabulary: tuple[str, ...]
    device = torch.device("cpu")

    def images(self, images: Tensor) -> Tensor:
        at = ((images[:, 0, 0, 0] + 1) * 127.5).round().long()
        return F.one_hot(at, len(self.vocabulary)).float()

    def text(self, prompt: str) -> Tensor:
        at = torch.tensor(self.vocabulary.index(prompt))
        return F.one_hot(at, len(self.vocabulary)).float()


def test_hits_are_counted_by_group_and_ties_are_shared() -> None:
    vocabulary = ("a", "b", "c", "d")
    clip = cast(ImagesAndWords, Reader(vocabulary))

    def hits(shown: str, captions: str) -> list[float]:
        red = torch.tensor([vocabulary.index(x) for x in shown]) / 127.5 - 1
        images = red.view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
        return found(clip, images, list(captions), 2).tolist()

    assert hits("abcd", "abcd") == [1, 1, 1, 1]
    assert hits("bacd", "abcd") == [0, 0, 1, 1]
    assert hits("aacd", "aacd") == [0.5, 0.5, 1, 1]  # two of one caption
    assert hits("abcda", "abcda") == [1, 1, 1, 1]  # the fifth has no group


def test_the_chain_changes_one_attribute_more_each_time() -> None:
    for k, one in enumerate(scenes("val", 80)):
        if len(attributes(one)) < MOST:
            continue
        captions = [each.caption for each in chain(one, k)]
        assert captions[0] == one.caption
        if one.type in ("size", "count", "color_attr"):  # a relation is not told by its caption
            assert len(set(captions)) == 1 + MOST


def test_what_cannot_be_measured_is_named() -> None:
    few = ShapesConfig(held_out=10)
    clip = cast(ImagesAndWords, SimpleNamespace())
    with pytest.raises(ValueError, match="among must be from 2 to the 10 images, got 64"):
        Retrieval(data=few).report(clip)
    with pytest.raises(ValueError, match="count must be at least 2, got 1"):
        Corruption(count=1)
