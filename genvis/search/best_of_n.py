"""Best of N: independent noises, the image that the verifier likes best.

Source: Ma et al. 2025, "Inference-time Scaling for Diffusion Models beyond Scaling Denoising
Steps", random search.
Letters: B prompts, n candidates per prompt.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from genvis.config import config
from genvis.random import HashKeys
from genvis.samplers.generate import generate, price
from genvis.search.ledger import BudgetExceededError, Ledger
from genvis.search.result import SearchResult
from genvis.types import Cond, Cost, Sampler, Verifier


@config
class BestOfN:
    n: int = 16
    chunk: int = 64  # rows per network call

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n must be at least 1 candidate per image, got {self.n}")
        if self.chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {self.chunk}")

    def __call__(
        self, sampler: Sampler, cond: Cond, verifier: Verifier, keys: HashKeys, ledger: Ledger
    ) -> SearchResult:
        result = None
        for result in self.rounds(sampler, cond, verifier, keys, ledger):  # noqa: B007
            pass
        assert result is not None
        return result

    def rounds(
        self, sampler: Sampler, cond: Cond, verifier: Verifier, keys: HashKeys, ledger: Ledger
    ) -> Iterator[SearchResult]:
        """The best after 1, 2, ..., n candidates: a search with a smaller n is a prefix of this
        one.

        Ends early where the ledger refuses the next candidate; raises `BudgetExceededError` if it
        refuses the first.
        """
        cost = price(sampler) + Cost(verifications=1)
        best, trace = None, []
        for j in range(self.n):
            try:
                ledger.reserve(cost * len(keys))
            except BudgetExceededError:
                if best is None:
                    raise
                return  # the best so far stands
            rival = _candidate(
                keys if j == 0 else keys.fold("candidate", j), sampler, cond, verifier, self.chunk
            )
            best = rival if best is None else best.or_better(rival)
            trace.append(best.scores)
            yield SearchResult(best.images, best.noise, torch.stack(trace, 1))


@dataclass(frozen=True)
class _Scored:
    noise: Tensor
    images: Tensor
    scores: Tensor

    def or_better(self, rival: "_Scored") -> "_Scored":
        wins = rival.scores > self.scores
        return _Scored(
            _where(wins, rival.noise, self.noise),
            _where(wins, rival.images, self.images),
            _where(wins, rival.scores, self.scores),
        )


def _where(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(rows.view(-1, *[1] * (yes.ndim - 1)), yes, no)


def _candidate(
    keys: HashKeys, sampler: Sampler, cond: Cond, verifier: Verifier, chunk: int
) -> _Scored:
    noise = keys.normal(sampler.noise_shape)
    images = generate(sampler, cond, keys, chunk, noise)
    return _Scored(noise, images, verifier(images, cond).cpu())
