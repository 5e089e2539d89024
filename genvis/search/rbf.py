"""Rollover Budget Forcing: a step is tried until it beats all before it; the tries that are left
over go to the next step.

Source: Kim et al. 2025, "Inference-Time Scaling for Flow Models via Stochastic Generation and
Rollover Budget Forcing", section 5 and released code. Its flow-to-SDE is a sampler: along `vp`, on
grid `circle`, by solver `euler_maruyama` with diffusion `volatility` (g = 3 t^2). That code never
takes the last step; to finish take one that adds no noise, `last: tweedie`.
Letters: B prompts; N chains of each; K noises for each chain to start from; M steps; q the quota of
tries that a step begins with.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genvis.config import config
from genvis.random import Keys
from genvis.search.best import spread
from genvis.search.ledger import BudgetExceededError, Ledger
from genvis.search.metered import DECODE, VERIFY, Metered, Population, candidates
from genvis.search.result import Anytime, Round, SearchResult
from genvis.types import Cond, Cost, Sampler, Verifier, join, take
from genvis.verifiers.scoring import require


@dataclass(frozen=True)
class Try:
    """A trajectory (one row) that has looked, its preview (3, H, W), score, number in the tree."""

    here: Population
    image: Tensor
    score: float
    number: int


@dataclass(frozen=True)
class Chain:
    """Where it stands, the best score it has ever seen, how often it may try the next step and how
    often it has, and the best of these tries.
    """

    at: Try
    goal: float
    quota: int
    tried: int = 0
    best: Try | None = None

    def hear(self, new: Try, q: int, open_end: bool) -> "Chain":
        """After one more try. open_end: whether where it leads a next step can be tried."""
        best = new if self.best is None or new.score > self.best.score else self.best
        tried, goal = self.tried + 1, max(self.goal, new.score)
        if open_end and new.score > self.goal:
            return Chain(new, goal, self.quota - tried + q)  # rollover
        if open_end and tried % self.quota == 0:
            return Chain(best, goal, q)  # the goal stays where it was
        return replace(self, goal=goal, tried=tried, best=best)

    @property
    def answer(self) -> Try:
        return self.best or self.at


@config
class RolloverBudgetForcing(Anytime):
    """nfe: looks at the network for one prompt. Among them are `initial` noises for each chain and,
    if `finish`, the rest of the best trajectory; without it, as released, the answer is a preview.
    """

    chains: int = 2
    initial: int = 25
    nfe: int = 500
    finish: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chains < 1 or self.initial < 1:
            raise ValueError(
                f"chains and initial must be at least 1, got {self.chains} and {self.initial}"
            )

    def plan(self, sampler: Sampler) -> tuple[int, int]:
        """The quota of a step, and how often every chain may try in all."""
        if not sampler.stochastic:
            raise ValueError(
                "rbf tries a step many times, and a deterministic solver always takes the same: "
                "choose a stochastic one, such as euler_maruyama"
            )
        steps, first = sampler.num_steps, self.chains * self.initial
        kept = steps - 1 if self.finish else 0
        q = (self.nfe - kept - first) // (steps * self.chains)
        if q < 1:
            raise ValueError(
                f"nfe must be at least {kept + first + steps * self.chains}, for {first} noises to "
                f"start from and a try at each of {steps} steps, got {self.nfe}"
            )
        # the released code stops where one more try would use up the budget
        return q, len(range(first + self.chains, self.nfe - kept, self.chains))

    def explore(
        self, sampler: Sampler, cond: Cond, verifier: Verifier, keys: Keys, ledger: Ledger
    ) -> Iterator[SearchResult]:
        require(verifier, cond)
        prompts = len(cond)
        meter = Metered(sampler, verifier, ledger, self.chunk, prompts)
        ending = self._ending(meter) * prompts
        ledger.hold(ending)
        chains: list[Chain] = []
        trace: tuple[Round, ...] = ()
        try:
            for chains, this in self.walk(meter, cond, keys):
                trace = (*trace, this)
                yield _answer(prompts, chains, trace)
        except BudgetExceededError:
            if not trace:
                raise  # else the best so far stands
        ledger.release(ending)
        if self.finish:
            yield _finished(meter, prompts, chains, trace)

    def walk(self, meter: Metered, cond: Cond, keys: Keys) -> Iterator[tuple[list[Chain], Round]]:
        """The B N chains at their start and after every try, prompt-major, with what was tried."""
        n, prompts = self.chains, len(cond)
        q, tries = self.plan(meter.sampler)
        own = candidates(keys, range(n * self.initial), prompts)
        start = meter.begin(own.normal(meter.sampler.noise_shape), cond, own)
        them, images, scores = meter.verify(start)
        chains = []
        for first in range(0, len(scores), self.initial):  # each at the best of its own noises
            i = first + int(scores[first : first + self.initial].argmax())
            number = i % (n * self.initial)
            at = Try(take(them, slice(i, i + 1)), images[i], float(scores[i]), number)
            chains.append(Chain(at, at.score, q))
        yield chains, _round(prompts, meter.ledger.spent, [-1] * len(scores), scores, chains)
        for i in range(tries):
            new = _try(meter, chains, i, first=n * (self.initial + i), n=n)
            born, made = [chain.at.number for chain in chains], torch.tensor([t.score for t in new])
            chains = [c.hear(t, q, _goes_on(meter, t)) for c, t in zip(chains, new, strict=True)]
            yield chains, _round(prompts, meter.ledger.spent, born, made.double(), chains)

    def _ending(self, meter: Metered) -> Cost:
        """What finishing a trajectory costs at most."""
        if not self.finish:
            return Cost()
        steps = (meter.sampler.cost(k) for k in range(meter.sampler.num_steps))
        return sum(steps, DECODE + VERIFY)


def _goes_on(meter: Metered, new: Try) -> bool:
    """Whether a next step can be tried from there: one before the last, and of which no two are the
    same.
    """
    return new.here.k < meter.sampler.num_steps - 1 and meter.forks(new.here)


def _try(meter: Metered, chains: Sequence[Chain], i: int, first: int, n: int) -> list[Try]:
    """The i-th try of every chain; those of one clock go through the network together."""
    made: dict[int, Try] = {}
    for k in sorted({chain.at.here.k for chain in chains}):
        rows = [row for row, chain in enumerate(chains) if chain.at.here.k == k]
        them = join([chains[row].at.here for row in rows])
        them, images, scores = meter.verify(meter.step(meter.rekey(them, "try", i)))
        for j, row in enumerate(rows):
            here = take(them, slice(j, j + 1))
            made[row] = Try(here, images[j], float(scores[j]), first + row % n)
    return [made[row] for row in range(len(chains))]


def _round(
    prompts: int, spent: Cost, born: list[int], scores: Tensor, chains: list[Chain]
) -> Round:
    best = torch.tensor([own.score for own in _best(prompts, chains)], dtype=torch.float64)
    return Round(spent, torch.tensor(born).view(prompts, -1), scores.view(prompts, -1), best)


def _best(prompts: int, chains: list[Chain]) -> list[Try]:
    """Of every prompt the best answer of its chains."""
    n = len(chains) // prompts
    found = [chain.answer for chain in chains]
    return [max(found[i : i + n], key=lambda own: own.score) for i in range(0, len(found), n)]


def _answer(prompts: int, chains: list[Chain], trace: tuple[Round, ...]) -> SearchResult:
    best, all_of_them = _best(prompts, chains), torch.stack([c.answer.image for c in chains])
    return SearchResult(
        images=torch.stack([own.image for own in best]),
        scores=torch.tensor([own.score for own in best], dtype=torch.float64),
        policy="best score, preview",
        chosen=torch.tensor([own.number for own in best]),
        trace=trace,
        diversity=spread(all_of_them.unflatten(0, (prompts, -1))),
    )


def _finished(
    meter: Metered, prompts: int, chains: list[Chain], trace: tuple[Round, ...]
) -> SearchResult:
    """The rest of every prompt's best trajectory, for a new score."""
    best = _best(prompts, chains)
    found = _answer(prompts, chains, trace).settled(meter.ledger.spent)
    images, scores = found.images.clone(), found.scores.clone()
    for k in sorted({own.here.k for own in best}):
        rows = [row for row, own in enumerate(best) if own.here.k == k]
        them = meter.advance(join([best[row].here for row in rows]), meter.sampler.num_steps)
        _, images[rows], scores[rows] = meter.verify(them)
    number = sum(past.parents.shape[1] for past in trace)  # of what was cut short none
    last = Round(meter.ledger.spent, found.chosen[:, None], scores[:, None], scores)
    return replace(
        found,
        images=images,
        scores=scores,
        policy="best score of the previews, finished",
        chosen=torch.full_like(found.chosen, number),
        trace=(*found.trace, last),
        searched=found.scores,
    )
