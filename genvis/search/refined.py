"""Search with a cheap sampler, and the answer made again by a better one.

Source: Ma et al. 2025, "Inference-time Scaling for Diffusion Models beyond Scaling Denoising
Steps": SiT is searched at 50 evaluations a candidate and sampled at 250.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from genvis.random import Keys
from genvis.search.ledger import Ledger
from genvis.search.metered import Metered
from genvis.search.result import Anytime, Round, SearchResult
from genvis.types import Cond, Sampler, Verifier


@dataclass(frozen=True)
class Refined:
    """A search whose answer `final` samples again, from the same noise, for a new score; the score
    that chose it is in `SearchResult.searched`. What that costs is held back from the start.
    """

    search: Anytime
    final: Sampler

    def __post_init__(self) -> None:
        if not self.search.repeatable:
            raise ValueError(
                f"{type(self.search).__name__} does not end in a noise that another sampler could "
                "start from: choose best_of_n or zero_order, or no final sampler"
            )

    def rounds(
        self, sampler: Sampler, cond: Cond, verifier: Verifier, keys: Keys, ledger: Ledger
    ) -> Iterator[SearchResult]:
        """Those of the search; then one more."""
        if self.final.noise_shape != sampler.noise_shape:
            raise ValueError(
                f"the final sampler starts from noise {self.final.noise_shape}, the search from "
                f"{sampler.noise_shape}"
            )
        meter = Metered(self.final, verifier, ledger, self.search.chunk, len(cond))
        ledger.hold(cost := meter.price * len(cond))
        for found in self.search.rounds(sampler, cond, verifier, keys, ledger):
            yield found
        ledger.release(cost)
        assert found.noise is not None  # it is repeatable
        assert found.keys is not None
        made = meter.sample(found.noise, cond, found.keys)
        scores = meter.rank(made.table)
        last = Round(ledger.spent, found.chosen[:, None], scores[:, None], scores)
        number = sum(past.parents.shape[1] for past in found.trace)
        yield replace(
            found,
            images=made.images,
            scores=scores,
            policy=f"{found.policy}, sampled again",
            chosen=torch.full_like(found.chosen, number),
            trace=(*found.trace, last),
            searched=found.scores,
        )

    def __call__(
        self, sampler: Sampler, cond: Cond, verifier: Verifier, keys: Keys, ledger: Ledger
    ) -> SearchResult:
        """The last of `rounds`."""
        *_, last = self.rounds(sampler, cond, verifier, keys, ledger)
        return last
