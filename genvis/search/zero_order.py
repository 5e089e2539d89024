"""Zero-order search: hill climbing on the initial noise, without gradients.

Source: Ma et al. 2025, "Inference-time Scaling for Diffusion Models beyond Scaling Denoising
Steps", section 3.1; the neighbourhood is that of their public re-implementation.
Letters: B prompts, n neighbours, rho the cosine between a neighbour and the pivot.
"""

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from genvis.config import config
from genvis.random import Keys
from genvis.search.best import after, spread
from genvis.search.ledger import Ledger
from genvis.search.metered import Metered
from genvis.search.result import Anytime, SearchResult
from genvis.types import Cond, Sampler, Verifier, repeat
from genvis.verifiers.scoring import require


@config
class ZeroOrder(Anytime):
    """Every round, `neighbours` noises around the best so far, which stays unless one beats it.

    All candidates of a prompt have its keys, so that with any sampler the image is a function of
    the noise.
    """

    repeatable: ClassVar[bool] = True
    neighbours: int = 4
    iterations: int = 4
    cosine: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours < 1 or self.iterations < 1:
            raise ValueError(
                f"neighbours and iterations must be at least 1, got {self.neighbours} and "
                f"{self.iterations}"
            )
        if not -1 < self.cosine < 1:
            raise ValueError(f"cosine must be in (-1, 1), got {self.cosine}")

    def explore(
        self, sampler: Sampler, cond: Cond, verifier: Verifier, keys: Keys, ledger: Ledger
    ) -> Iterator[SearchResult]:
        require(verifier, cond, previews=True, across_calls=False)
        prompts, n = len(cond), self.neighbours
        meter = Metered(sampler, verifier, ledger, self.chunk, prompts)
        pivot = keys.normal(sampler.noise_shape)
        first = meter.sample(pivot, cond, keys)
        best = after(meter, None, first, torch.full((prompts, 1), -1), ledger.spent)
        yield best.result(spread(first.images[:, None]))
        for i in range(1, self.iterations + 1):
            moves = keys.fold("neighbours", i).normal((n, *sampler.noise_shape))
            around = neighbours(best.own.noise, moves, self.cosine).flatten(0, 1)
            rivals = meter.sample(around, cond, repeat(keys, n))
            best = after(meter, best, rivals, best.chosen[:, None].expand(prompts, n), ledger.spent)
            yield best.result(spread(rivals.images.unflatten(0, (prompts, n))))


def neighbours(pivot: Tensor, moves: Tensor, cosine: float) -> Tensor:
    """Noises (B, n, ...) with the norm of pivot (B, ...) and that cosine to it; moves (B, n, ...)
    are normal: |p| (rho u + sqrt(1 - rho^2) w), u along p and w along the move's part across it.
    """
    p, g = pivot.double().flatten(1)[:, None], moves.double().flatten(2)  # (B, 1, D), (B, n, D)
    norm = p.norm(dim=-1, keepdim=True)
    u = p / norm
    across = g - (g * u).sum(-1, keepdim=True) * u
    w = across / across.norm(dim=-1, keepdim=True)
    return (norm * (cosine * u + math.sqrt(1 - cosine**2) * w)).to(pivot).view_as(moves)
