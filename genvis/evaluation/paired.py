"""Image against image: what two models made of the same keys, or a reconstruction of its original.

Letters: B pairs.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from genvis.devices import processes
from genvis.evaluation.extraction import metric_name
from genvis.evaluation.similarity import likeness
from genvis.evaluation.sources import Images
from genvis.features.lpips import LPIPS
from genvis.images import from_uint8
from genvis.types import Cond

SCORE, PAIR = "score/", "pair/"  # names of rows that are a metric of each image, of each pair


@dataclass(frozen=True)
class Pairs:
    """PSNR, SSIM (from 11 x 11 pixels on) and, with its weights, LPIPS to `against`, row by row.

    ValueError if the sets differ in number, size or labels.
    """

    against: Images
    lpips: LPIPS | None = None

    @property
    def identity(self) -> dict[str, Any]:
        weights = None if self.lpips is None else self.lpips.sha256
        return {"against": self.against.identity, "lpips": weights}

    def __call__(self, pixels: Tensor, cond: Cond, rows: range) -> dict[str, Tensor]:
        pixels = pixels[: len(rows)]
        others, given = self.against.read(rows)
        if pixels.shape != others.shape:
            mine, theirs = tuple(pixels.shape[1:]), tuple(others.shape[1:])
            raise ValueError(f"not pairs: images of {mine} and {theirs}")
        if cond.label is not None and given.label is not None and (cond.label != given.label).any():
            raise ValueError("not pairs: their labels differ")
        found = {name: each.values for name, each in likeness(pixels, others).items()}
        if self.lpips is not None:
            device = processes().device
            a, b = (from_uint8(each.to(device)) for each in (pixels, others))
            name = metric_name("LPIPS", self.lpips.name, self.lpips.sha256)
            found[name] = self.lpips.to(device)(a, b).double().cpu()
        return {PAIR + name: values for name, values in found.items()}


def check_paired(images: Images, against: Images) -> None:
    """ValueError unless both have as many images, enough for an interval of their difference."""
    if len(images) != len(against):
        raise ValueError(f"not pairs: {len(images)} and {len(against)} images")
    if len(images) < 4:
        raise ValueError(f"a difference with an interval needs at least 4 pairs, got {len(images)}")
