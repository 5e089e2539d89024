"""How far apart the images of one condition are: what a search for the best gives away.

Letters: N images.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from genvis.search.best import spread


def diversity(images: Tensor, things: Sequence[object]) -> float | None:
    """The root mean square difference of a pixel between two of the images (N, 3, H, W) that show
    the same thing; every thing counts alike. None where no two do.
    """
    members: dict[object, list[int]] = {}
    for i, thing in enumerate(things):
        members.setdefault(thing, []).append(i)
    each = [spread(images[rows][None]) for rows in members.values() if len(rows) > 1]
    return float(torch.cat(each).square().mean().sqrt()) if each else None
