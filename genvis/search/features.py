"""What candidates look like, without a score, and which of them stand for the others.

Sources: "TTS-VAR", 2025, and released code (one direction per image over the tokens of
its patches); Arthur and Vassilvitskii 2007, "k-means++".
Letters: n images, L patches of an image, D width; C candidates, K clusters.
"""

from functools import cache
from typing import Annotated, Any, Literal, Protocol

import torch
from einops import rearrange
from torch import Tensor

from genvis.config import config
from genvis.features import EXTRACTORS


class Features(Protocol):
    def __call__(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) in [-1, 1] -> (n, D)."""
        ...


class ExtractorConfig(Protocol):
    def __hash__(self) -> int: ...
    def build(self) -> Any: ...


@config
class Patches:
    """The pixels of grid x grid patches as tokens. of: their places along the direction in which
    they differ most (pca, L numbers), or all as they are (pixels).
    """

    grid: int = 4
    of: Literal["pca", "pixels"] = "pca"

    def __post_init__(self) -> None:
        if self.grid < 2:
            raise ValueError(f"grid must be at least 2 patches a side, got {self.grid}")

    def __call__(self, images: Tensor) -> Tensor:
        if images.shape[2] % self.grid or images.shape[3] % self.grid:
            raise ValueError(
                f"grid must divide the image's sides {tuple(images.shape[2:])}, got {self.grid}"
            )
        tokens = rearrange(
            images.double(), "n c (i p) (j q) -> n (i j) (p q c)", i=self.grid, j=self.grid
        )
        return first_component(tokens) if self.of == "pca" else tokens.flatten(1)


@config
class Extracted:
    """By a feature extractor."""

    extractor: Annotated[ExtractorConfig, EXTRACTORS]

    def __call__(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return _built(self.extractor)(images).double()


@cache
def _built(extractor: ExtractorConfig) -> Any:
    return extractor.build()


def first_component(tokens: Tensor) -> Tensor:
    """The tokens (n, L, D) of every image along their first principal direction, (n, L).

    The sign of a principal direction is arbitrary: the largest entry is made positive.
    """
    centred = tokens - tokens.mean(1, keepdim=True)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    along = u[..., 0] * s[..., :1]
    return along * along.gather(1, along.abs().argmax(1, keepdim=True)).sign()


def representatives(x: Tensor, k: int, u: Tensor) -> Tensor:
    """The members nearest to the centres of K clusters of x (C, D), as K different numbers, in
    ascending order; u (K,) uniforms start the clusters.
    """
    if k > len(x):
        raise ValueError(f"{len(x)} candidates have no {k} representatives")
    centres = x[_spread_out(x, u[:k])]
    for _ in range(100):
        nearest = torch.cdist(x, centres).argmin(1)
        own = torch.nn.functional.one_hot(nearest, k).to(x)  # (C, K)
        size = own.sum(0)[:, None]
        moved = torch.where(size > 0, own.T @ x / size.clamp(min=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    chosen: list[int] = []
    for distance in torch.cdist(centres, x):  # one of its own that nobody else has taken
        distance[chosen] = torch.inf
        chosen.append(int(distance.argmin()))
    return torch.tensor(sorted(chosen))


def _spread_out(x: Tensor, u: Tensor) -> list[int]:
    """k-means++: each centre drawn by its squared distance to those before it."""
    chosen = [int(u[0] * len(x))]
    for draw in u[1:]:
        weight = torch.cdist(x, x[chosen]).min(1).values.square()
        if weight.sum() == 0:  # as many as differ are chosen already
            weight = torch.ones(len(x), dtype=x.dtype).index_fill(0, torch.tensor(chosen), 0)
        cdf = weight.cumsum(0)
        chosen.append(
            int(torch.searchsorted(cdf, draw * cdf[-1], right=True).clamp(max=len(x) - 1))
        )
    return chosen
