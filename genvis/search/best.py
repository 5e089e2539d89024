"""The best candidate of every prompt so far, for searches among whole images.

Letters: B prompts, n candidates of each, prompt-major.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from genvis.search.metered import Candidates, Metered
from genvis.search.result import Round, SearchResult
from genvis.types import Cost, join, take


@dataclass(frozen=True)
class Best:
    """The winner of every prompt is entry top (B,) of the pool, whose numbers and scores are
    (B, n): it alone where scores stand for themselves, all so far where it takes them to rank it.
    """

    pool: Candidates
    numbers: Tensor
    scores: Tensor
    top: Tensor
    trace: tuple[Round, ...]

    @property
    def own(self) -> Candidates:
        return take(self.pool, _rows(self.top, self.numbers.shape[1]))

    @property
    def chosen(self) -> Tensor:
        return self.numbers[torch.arange(len(self.top)), self.top]

    def result(self, diversity: Tensor) -> SearchResult:
        own, best = self.own, self.trace[-1].best
        assert best is not None
        return SearchResult(
            own.images, best, "best score", self.chosen, self.trace, diversity, own.noise, own.keys
        )


def after(
    meter: Metered, best: Best | None, rivals: Candidates, parents: Tensor, spent: Cost
) -> Best:
    """`best`, or whichever of its rivals (parents (B, n)) beats it; the first of equals stays."""
    prompts, n = parents.shape
    trace = () if best is None else best.trace
    first = sum(past.parents.shape[1] for past in trace)
    numbers, pool = (first + torch.arange(n)).expand(prompts, n), rivals
    if best is not None:
        count = best.numbers.shape[1]
        numbers = torch.cat([best.numbers, numbers], 1)
        order = torch.arange(prompts * (count + n)).split([prompts * count, prompts * n])
        order = torch.cat([part.view(prompts, -1) for part in order], 1)
        pool = take(join([best.pool, rivals]), order.flatten())
    scores = meter.rank(pool.table).view(prompts, -1)
    top, everyone = scores.argmax(1), torch.arange(prompts)
    trace = (*trace, Round(spent, parents, scores[:, -n:], scores[everyone, top]))
    if meter.set_wise:
        return Best(pool, numbers, scores, top, trace)
    winner = _rows(top, scores.shape[1])
    alone, there = top[:, None], torch.zeros_like(top)
    return Best(take(pool, winner), numbers.gather(1, alone), scores.gather(1, alone), there, trace)


def _rows(entry: Tensor, n: int) -> Tensor:
    """The rows of entry[b] of each prompt's n."""
    return torch.arange(len(entry)) * n + entry


@dataclass(frozen=True)
class Spread:
    """Running sums over the images of every prompt, for the mean distance of all their pairs: twice
    the variance is the mean of the squared distances.
    """

    n: int = 0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def plus(self, images: Tensor) -> "Spread":
        """With images (B, m, 3, H, W)."""
        x = images.double()
        return Spread(self.n + x.shape[1], self.total + x.sum(1), self.squares + (x**2).sum(1))

    @property
    def distance(self) -> Tensor:
        """The root mean square difference of a pixel between two images, (B,)."""
        assert isinstance(self.total, Tensor)
        if self.n == 1:
            return torch.zeros(len(self.total), dtype=torch.float64)
        variance = (self.squares - self.total**2 / self.n) / (self.n - 1)
        return (2 * variance.flatten(1).mean(1)).clamp(min=0).sqrt()


def spread(images: Tensor) -> Tensor:
    """`Spread.distance` of images (B, m, 3, H, W)."""
    return Spread().plus(images).distance


def picked(
    pick: Tensor, images: Tensor, scores: Tensor, numbers: Tensor, policy: str
) -> SearchResult:
    """Entry pick[b] of the last round's images (B, C, 3, H, W), scores and numbers (B, C); its
    trace is still to come.
    """
    prompt = torch.arange(len(pick))
    return SearchResult(
        images[prompt, pick],
        scores[prompt, pick],
        policy,
        numbers[prompt, pick],
        trace=(),
        diversity=spread(images),
    )


def when(policy: str, k: int, steps: int) -> str:
    """The policy, and how far the images are."""
    return policy if k == steps else f"{policy}, preview after {k} of {steps} steps"
