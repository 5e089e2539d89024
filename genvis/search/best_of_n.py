"""Best of N: independent noises, the image that the verifier likes best.

Source: Ma et al. 2025, "Inference-time Scaling for Diffusion Models beyond Scaling Denoising
Steps", random search.
Letters: B prompts, n candidates per prompt.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch

from genvis.config import config
from genvis.random import Keys
from genvis.search.best import Spread, after
from genvis.search.ledger import Ledger
from genvis.search.metered import Metered, candidates
from genvis.search.result import Anytime, SearchResult
from genvis.types import Cond, Sampler, Verifier
from genvis.verifiers.scoring import require


@config
class BestOfN(Anytime):
    """A round is one candidate, so a search with a smaller n is a prefix of one with a larger n."""

    repeatable: ClassVar[bool] = True
    n: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n < 1:
            raise ValueError(f"n must be at least 1 candidate per image, got {self.n}")

    def explore(
        self, sampler: Sampler, cond: Cond, verifier: Verifier, keys: Keys, ledger: Ledger
    ) -> Iterator[SearchResult]:
        require(verifier, cond, previews=True, across_calls=False)
        meter, prompts = Metered(sampler, verifier, ledger, self.chunk, len(cond)), len(cond)
        fresh, best, seen = torch.full((prompts, 1), -1), None, Spread()
        one = meter.price * prompts
        for j in range(0, self.n, full := max(1, self.chunk // prompts)):  # as fill one call
            wanted = min(full, self.n - j)
            m = ledger.affords(one, wanted)
            if m > 0 or best is None:
                before = ledger.spent
                own = candidates(keys, range(j, j + max(m, 1)), prompts)
                made = meter.sample(own.normal(sampler.noise_shape), cond, own)
                for i, rival in enumerate(made.each(prompts)):
                    best = after(meter, best, rival, fresh, before + one * (i + 1))
                    seen = seen.plus(rival.images[:, None])
                    yield best.result(seen.distance)
            if m < wanted:
                return  # the best so far stands
