"""How a search is called, and what it returns: an answer, and how it was found.

Letters: B prompts, n candidates of one prompt in one round, N particles of one prompt. A round is
one batch of candidates, scored together. Candidates of a prompt are numbered from 0 through all
rounds, in the order in which they were made.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from genvis.config import config
from genvis.random import Keys
from genvis.search.ledger import BudgetExceededError, Ledger
from genvis.types import Cond, Cost, Sampler, Verifier


@dataclass(frozen=True)
class Round:
    """What one round added to the tree of candidates.

    spent: the ledger's total over all prompts once it was over; parents (B, n) int64: the number of
    the candidate that each was made from, -1 for none; scores (B, n) float64 and the score `best`
    (B,) of the answer, had the search ended here; both None where nothing was scored. A round that
    the budget cut short has n = 0: what it spent was in vain.
    """

    spent: Cost
    parents: Tensor
    scores: Tensor | None = None
    best: Tensor | None = None


@dataclass(frozen=True)
class Weighted:
    """A weighted sample: images (B, N, 3, H, W), scores and log_weights (B, N) float64.

    log_weights are normalised: their exponentials add up to 1 for every prompt. log_z (B,) is the
    estimate of log E[exp(lam score)] under the model, None where the method has none.
    """

    images: Tensor
    scores: Tensor
    log_weights: Tensor
    log_z: Tensor | None = None


@dataclass(frozen=True)
class SearchResult:
    """images (B, 3, H, W) and their scores (B,) float64, on the CPU.

    policy: how they were chosen; chosen (B,): their numbers among the candidates; trace: a `Round`
    for every batch of candidates; diversity (B,): the root mean square difference of a pixel
    between two of a prompt's final candidates (0 where there is one); noise (B, ...) and keys: what
    the sampler makes the images from, None where a search forked trajectories on the way;
    particles: all final candidates with their weights, from particle methods; searched (B,): the
    scores by which images were chosen that were then finished or made again.
    """

    images: Tensor
    scores: Tensor
    policy: str
    chosen: Tensor
    trace: tuple[Round, ...]
    diversity: Tensor
    noise: Tensor | None = None
    keys: Keys | None = None
    particles: Weighted | None = None
    searched: Tensor | None = None

    @property
    def curve(self) -> Tensor:
        """The score of the answer after every scored round, (B, rounds)."""
        return torch.stack([r.best for r in self.trace if r.best is not None], 1)

    @property
    def spent(self) -> Cost:
        """Over all prompts."""
        return self.trace[-1].spent

    def settled(self, spent: Cost) -> "SearchResult":
        """With a round that was cut short, if more was spent than on the rounds so far."""
        if spent == self.spent:
            return self
        nobody = self.chosen.new_zeros(len(self.chosen), 0)
        return replace(self, trace=(*self.trace, Round(spent, nobody)))


class Search(Protocol):
    """A method. What it finds for a prompt does not depend on the other prompts nor on how many
    rows go through the network at once.
    """

    def rounds(
        self, sampler: Sampler, cond: Cond, verifier: Verifier, keys: Keys, ledger: Ledger
    ) -> Iterator[SearchResult]:
        """The best so far after every round, for B prompts and their B keys.

        Ends early where the ledger refuses the next call; raises `BudgetExceededError` if it
        refuses the first.
        """
        ...

    def __call__(
        self, sampler: Sampler, cond: Cond, verifier: Verifier, keys: Keys, ledger: Ledger
    ) -> SearchResult:
        """The last of `rounds`."""
        ...


@config
class Anytime:
    """What all searches share: an answer after every round, the end where the ledger refuses, and
    `chunk` rows per network call. A method writes `explore`.
    """

    repeatable: ClassVar[bool] = False  # whether the answer is made from a noise it returns
    chunk: int = 64

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {self.chunk}")

    def explore(self, *given: Any) -> Iterator[SearchResult]:
        """What `rounds` gives, as if there were no budget: a refused call may end it anywhere."""
        raise NotImplementedError

    def rounds(
        self, sampler: Sampler, cond: Cond, verifier: Verifier, keys: Keys, ledger: Ledger
    ) -> Iterator[SearchResult]:
        found = None
        try:
            for found in self.explore(sampler, cond, verifier, keys, ledger):
                yield found
        except BudgetExceededError:
            if found is None:
                raise  # there is no answer that could stand
        assert found is not None  # every search has a first round
        if (whole := found.settled(ledger.spent)) is not found:
            yield whole

    def __call__(
        self, sampler: Sampler, cond: Cond, verifier: Verifier, keys: Keys, ledger: Ledger
    ) -> SearchResult:
        result = None
        for result in self.rounds(sampler, cond, verifier, keys, ledger):  # noqa: B007
            pass
        assert result is not None  # the first call was refused, or there is an answer
        return result
