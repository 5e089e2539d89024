"""Retrieval among the captions of `shapes`: how often a network finds an image's own among n, and
how often anything could.

Several of the n may fit an image: duplicates, and captions that say less ("a star", "a pink star").
Every caption comes with its own image as often as every other here, so whoever knows the scene does
best with the one that leaves least open, p(image | caption) being largest, and must guess among
equals. That is the ceiling.
Letters: N images, n captions to choose from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genvis.config import config
from genvis.data.scenes import BACKGROUNDS, COLORS, SIZES, Scene, Split
from genvis.data.shapes import ShapesConfig
from genvis.features.clip import ImagesAndWords

ROWS = 64  # images in one pass
PAIR_COLORS = len(COLORS) * (len(COLORS) - 1)  # of two things
PLACES = 4  # of two things, each on either side or above or below the other
LEFT_OPEN = {  # how many ways there are to draw what a caption says, but for its background
    "single": len(COLORS) * len(SIZES),
    "color": len(SIZES),
    "size": 1,
    "two": PAIR_COLORS * PLACES,
    "position": PAIR_COLORS,
    "color_attr": PLACES,
}


def fitting(scene: Scene) -> dict[str, int]:
    """Every caption of the dataset's grammar that is true of a scene, with the number of ways it
    leaves open.
    """
    if scene.type == "count":
        types: tuple[str, ...] = ("count",)
    else:
        types = ("single", "color", "size")
        types = types if len(scene.things) == 1 else ("two", "position", "color_attr")
    found = {}
    for type in types:
        for swap in (False, True):
            left = LEFT_OPEN.get(type) or (1 if swap else len(COLORS))  # of a count
            for said in (False, True):
                saying = replace(scene, type=type, swap=swap, names_background=said)
                found[saying.caption] = left * (1 if said else len(BACKGROUNDS))
    return found


def ceiling(scenes: Sequence[Scene], n: int = 64) -> Tensor:
    """The best chance (N,) of finding each scene's caption among its group's n, in order."""
    chances = []
    for group in groups(len(scenes), n):
        captions = [scenes[i].caption for i in group]
        for i in group:
            fits = fitting(scenes[i])
            least = min(fits[caption] for caption in captions if caption in fits)
            best = [caption for caption in captions if fits.get(caption) == least]
            chances.append((scenes[i].caption in best) / len(best))
    return torch.tensor(chances, dtype=torch.float64)


@torch.no_grad()
def found(clip: ImagesAndWords, images: Tensor, captions: Sequence[str], n: int = 64) -> Tensor:
    """Whether each of N images (N, 3, H, W) in [-1, 1] is nearest to its own caption of its group's
    n, (N,); 1 / k where it shares the place with k - 1 others.
    """
    words = {caption: clip.text(caption) for caption in dict.fromkeys(captions)}
    seen = torch.cat([clip.images(rows.to(clip.device)) for rows in images.split(ROWS)])
    hits = []
    for group in groups(len(images), n):
        near = seen[group.start : group.stop] @ torch.stack([words[captions[i]] for i in group]).mT
        own, most = near.diagonal(), near.amax(1)
        # one caption's columns may differ in the last bit
        tied = (near >= most[:, None] - 1e-6).sum(1)
        hits.append((own >= most - 1e-6).double() / tied)
    return torch.cat(hits).cpu()


def groups(count: int, n: int) -> list[range]:
    """Rows in groups of n; the rest is left out. ValueError if there is not one group."""
    if not 1 < n <= count:
        raise ValueError(f"among must be from 2 to the {count} images, got {n}")
    return [range(start, start + n) for start in range(0, count - n + 1, n)]


@dataclass(frozen=True)
class Retrieved:
    """Shares of n_images; error: standard error of top1."""

    split: Split
    images: int
    among: int
    top1: float
    error: float
    ceiling: float

    @property
    def share(self) -> float:
        return self.top1 / self.ceiling

    def __str__(self) -> str:
        return (
            f"{self.split}: top-1 of {self.among} {self.top1:.3f} +- {self.error:.3f}, ceiling "
            f"{self.ceiling:.3f}, share {self.share:.3f} ({self.images} images)"
        )


@config
class Retrieval:
    data: ShapesConfig = ShapesConfig()
    among: int = 64
    splits: tuple[Split, ...] = ("val", "heldout")

    def report(self, clip: ImagesAndWords) -> list[Retrieved]:
        """For every split: of train's kind, and of compositions that train never showed."""
        return [self._split(clip, split) for split in self.splits]

    def _split(self, clip: ImagesAndWords, split: Split) -> Retrieved:
        data = self.data.build(split)
        n = len(groups(len(data), self.among)) * self.among
        batch, scenes = data[range(n)], [data.scene(i) for i in range(n)]
        assert batch.cond.prompts is not None
        hits = found(clip, batch.x, batch.cond.prompts, self.among)
        best = ceiling(scenes, self.among)
        error = (hits.std() / len(hits) ** 0.5).item()
        return Retrieved(split, n, self.among, hits.mean().item(), error, best.mean().item())
