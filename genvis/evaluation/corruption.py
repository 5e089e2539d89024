"""What a network of images and words makes of images of `shapes` in which one, two, three things
are not as their caption says. A score that understands falls at every change.

Letters: N images; column k of a table: k attributes are wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from genvis.config import config
from genvis.data.altered import Attribute, altered, attributes
from genvis.data.drawing import render
from genvis.data.scenes import Scene, Split
from genvis.data.shapes import ShapesConfig
from genvis.features.clip import ImagesAndWords
from genvis.images import from_uint8
from genvis.random import permutation

MOST = 3  # attributes that are wrong


def chain(scene: Scene, seed: int) -> list[Scene]:
    """The scene, and with one attribute more that is not as its caption says, up to `MOST`, each
    time; which one comes first is random.
    """
    says = attributes(scene)
    order: list[Attribute] = [says[k] for k in permutation(len(says), seed).tolist()]
    return [altered(scene, order[:k], seed) for k in range(MOST + 1)]


@torch.no_grad()
def table(clip: ImagesAndWords, scenes: Sequence[Scene], size: int) -> Tensor:
    """100 cos (N, 1 + MOST) of scenes' captions and images of `size` pixels that show 0 to `MOST`
    attributes otherwise. Each caption must say so many.
    """
    words = {caption: clip.text(caption) for caption in {scene.caption for scene in scenes}}
    found = []
    for k, scene in enumerate(scenes):
        drawn = [torch.from_numpy(render(each, size)) for each in chain(scene, k)]
        pixels = torch.stack(drawn).permute(0, 3, 1, 2)
        seen = clip.images(from_uint8(pixels).to(clip.device))  # (1 + MOST, E)
        found.append(100 * (seen.double() @ words[scene.caption].double()).cpu())
    return torch.stack(found)


@dataclass(frozen=True)
class Fall:
    """Mean scores by the number of wrong attributes, with standard errors; missed: the share of the
    images whose score does not fall at the first, second, third change.
    """

    split: Split
    images: int
    means: tuple[float, ...]
    errors: tuple[float, ...]
    missed: tuple[float, ...]

    @classmethod
    def of(cls, split: Split, found: Tensor) -> "Fall":
        errors = found.std(0) / len(found) ** 0.5
        missed = (found.diff(dim=1) >= 0).double().mean(0)
        numbers = (tuple(each.tolist()) for each in (found.mean(0), errors, missed))
        return cls(split, len(found), *numbers)

    def __str__(self) -> str:
        pairs = zip(self.means, self.errors, strict=True)
        scores = ", ".join(f"{mean:.1f} +- {error:.1f}" for mean, error in pairs)
        missed = ", ".join(f"{share:.3f}" for share in self.missed)
        return (
            f"{self.split}: 100 cos with 0 to {MOST} attributes wrong: {scores}; share of images "
            f"whose score does not fall at each: {missed} ({self.images} images)"
        )


@config
class Corruption:
    data: ShapesConfig = ShapesConfig()
    splits: tuple[Split, ...] = ("val", "heldout")
    count: int = 512  # images at most, of those whose caption says enough

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ValueError(f"count must be at least 2, got {self.count}")

    def report(self, clip: ImagesAndWords) -> list[Fall]:
        return [self._split(clip, split) for split in self.splits]

    def _split(self, clip: ImagesAndWords, split: Split) -> Fall:
        data = self.data.build(split)
        every = (data.scene(i) for i in range(len(data)))
        enough = (scene for scene in every if len(attributes(scene)) >= MOST)
        scenes = list(islice(enough, self.count))
        if len(scenes) < 2:
            raise ValueError(f"{split}: too few of {len(data)} captions name {MOST} attributes")
        return Fall.of(split, table(clip, scenes, self.data.size))
