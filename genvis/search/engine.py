"""The engine of particle search: propose, score, weigh, select, from noise to images.

Sources: `methods` names the papers, each with its setting.
Letters: B prompts; C candidates of a prompt, of which N go on, with M children each; k steps done;
tilt = lam score; w weights; G potentials; Z = E[exp(tilt)] under the model.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from genvis.config import config
from genvis.random import Keys
from genvis.search import POTENTIALS, PROPOSALS, SELECTIONS
from genvis.search.best import picked, when
from genvis.search.ledger import Ledger
from genvis.search.metered import Metered, Population, candidates
from genvis.search.potentials import Difference, Memory, Potential
from genvis.search.proposals import Own, Proposal
from genvis.search.resampling import inverse_cdf, log_mean
from genvis.search.result import Anytime, Round, SearchResult, Weighted
from genvis.search.selections import Keep, Resample, Selection
from genvis.types import Cond, Sampler, Verifier, take
from genvis.verifiers.scoring import require


@dataclass(frozen=True)
class Stage:
    """After k steps, n particles of every prompt are selected to go on."""

    k: int
    n: int
    select: Selection


@dataclass(frozen=True)
class Crowd:
    """B C candidates, prompt-major, with all that belongs to each: log weights (B C,) float64, and
    their numbers in the tree (B C,), -1 before they got one. m neighbours have one parent.
    """

    prompts: int
    them: Population
    log_w: Tensor
    memory: Memory
    number: Tensor
    m: int = 1

    @classmethod
    def of(cls, prompts: int, them: Population) -> "Crowd":
        zero = torch.zeros(len(them), dtype=torch.float64)
        return cls(prompts, them, zero, Memory.blank(len(them)), torch.full((len(them),), -1))

    def by_prompt(self, values: Tensor) -> Tensor:
        """(B C, ...) as (B, C, ...)."""
        return values.unflatten(0, (self.prompts, -1))

    def fork(self, meter: Metered, rows: Tensor, purpose: str, m: int = 1) -> "Crowd":
        """Those rows, with copies that come apart, also from those made here for other purposes."""
        if torch.equal(rows, torch.arange(len(self.number))):
            return replace(self, m=m)
        return replace(take(self, rows), them=meter.fork(self.them, rows, purpose), m=m)

    def numbered(self, trace: Sequence[Round]) -> "Crowd":
        """With the next numbers after those of all rounds so far."""
        first, c = sum(r.parents.shape[1] for r in trace), len(self.number) // self.prompts
        return replace(self, number=torch.arange(first, first + c).repeat(self.prompts))


@config
class Engine(Anytime):
    """All of a particle method but its stages. lam: what a score counts in the weights, the inverse
    of a temperature; output: which of the last particles is the answer.
    """

    n: int = 4
    children: int = 1
    lam: float = 1.0
    potential: Annotated[Potential, POTENTIALS] = Difference()
    proposal: Annotated[Proposal, PROPOSALS] = Own()
    output: Literal["best score", "best weight", "drawn"] = "best score"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n < 1 or self.children < 1:
            raise ValueError(f"n and children must be at least 1, got {self.n} and {self.children}")
        if not 0 < self.lam < math.inf:
            raise ValueError(f"lam must be positive and finite, got {self.lam}")
        if self.proposal.twists and self.children > 1:
            raise ValueError(f"a gradient proposal has 1 child, got children {self.children}")

    @property
    def size(self) -> int:
        """Particles of a prompt at the start."""
        return self.n

    def stages(self, steps: int) -> Sequence[Stage]:
        """Where a sampler of so many steps is interrupted; the last stage is its end."""
        raise NotImplementedError

    def explore(
        self, sampler: Sampler, cond: Cond, verifier: Verifier, keys: Keys, ledger: Ledger
    ) -> Iterator[SearchResult]:
        stages = self.stages(sampler.num_steps)
        self._check(stages, sampler, verifier, cond)
        meter = Metered(sampler, verifier, ledger, self.chunk, len(cond))
        own = candidates(keys, range(self.size), len(cond))
        crowd = Crowd.of(len(cond), meter.begin(own.normal(sampler.noise_shape), cond, own))
        log_z, proper = torch.zeros(len(cond)).double(), all(s.select.proper for s in stages)
        trace: tuple[Round, ...] = ()
        for stage in stages:
            crowd = self._propose(meter, crowd, stage.k)
            crowd, images, scores = self._look(meter, crowd, stage.select)
            if images is None:
                continue  # nobody needs to see them
            parents, crowd = crowd.by_prompt(crowd.number), crowd.numbered(trace)
            if scores is None:
                trace = (*trace, Round(ledger.spent, parents))
            else:
                crowd = self.weigh(meter, crowd, scores)
                log_w, scores = crowd.by_prompt(crowd.log_w), crowd.by_prompt(scores)
                z = log_z + log_mean(log_w) if proper else None
                sample = Weighted(crowd.by_prompt(images), scores, log_w.log_softmax(1), z)
                answer = self._answer(meter, crowd, sample, keys)
                trace = (*trace, Round(ledger.spent, parents, scores, answer.scores))
                yield replace(answer, trace=trace)
            if not meter.done(crowd.them):
                crowd, gained = self._select(meter, crowd, images, stage, keys)
                log_z = log_z + gained

    def _propose(self, meter: Metered, crowd: Crowd, k: int) -> Crowd:
        """M children of everyone, advanced to k steps; one where copies cannot come apart."""
        if self.children > 1 and meter.forks(crowd.them):
            crowd = replace(crowd, them=meter.look(crowd.them))  # once for all children
            rows = torch.arange(len(crowd.them)).repeat_interleave(self.children)
            crowd = crowd.fork(meter, rows, "child", self.children)
        while crowd.them.k < k:
            tilt = self.lam * self.potential.level(crowd.them.k + 1)
            them, log_ratio = self.proposal(meter, crowd.them, tilt)
            crowd = replace(crowd, them=them, log_w=crowd.log_w + log_ratio)
        return crowd

    def _look(
        self, meter: Metered, crowd: Crowd, select: Selection
    ) -> tuple[Crowd, Tensor | None, Tensor | None]:
        """Previews (B C, ...) where anything asks for them, scores (B C,) where weights do."""
        images, scores = None, None
        if self.proposal.twists and not meter.done(crowd.them):
            them, images, scores = meter.twist(crowd.them)
        elif meter.done(crowd.them) or (select.needs == "weights" and self.potential.weighs):
            them, images, scores = meter.verify(crowd.them)
        elif select.needs == "images":
            them, images = meter.decode(crowd.them)
        else:
            return crowd, None, None
        return replace(crowd, them=them), images, scores

    def weigh(self, meter: Metered, crowd: Crowd, scores: Tensor) -> Crowd:
        """By the potential; at the end, such that every lineage has paid exp(tilt)."""
        tilt = self.lam * scores
        memory = crowd.memory.hear(tilt)
        if meter.done(crowd.them):
            log_g = tilt - memory.log_g
        else:
            log_g = self.potential(tilt, memory, crowd.them.k)
        return replace(crowd, log_w=crowd.log_w + log_g, memory=memory.paid(log_g))

    def _select(
        self, meter: Metered, crowd: Crowd, images: Tensor, stage: Stage, keys: Keys
    ) -> tuple[Crowd, Tensor]:
        """Those that go on, and what resampling moved from their weights to log Z, (B,)."""
        log_w, select = crowd.by_prompt(crowd.log_w), stage.select
        if select.duplicates and not meter.forks(crowd.them):
            select = Keep()  # copies would stay equal
        draws = keys.fold("select", crowd.them.k)
        choice = select(log_w, crowd.by_prompt(images), stage.n, crowd.m, draws)
        first = torch.arange(0, log_w.numel(), log_w.shape[1])[:, None]
        crowd = crowd.fork(meter, (first + choice.rows).flatten(), "copy")
        memory = crowd.memory if select.proper else crowd.memory.unpaid()  # weights were forgotten
        return replace(crowd, log_w=choice.log_w.flatten(), memory=memory), choice.log_z

    def _answer(self, meter: Metered, crowd: Crowd, sample: Weighted, keys: Keys) -> SearchResult:
        """One of every prompt's candidates, by the output policy."""
        if self.output == "drawn":
            u = keys.fold("output").uniform((1,))
            pick = inverse_cdf(sample.log_weights.exp(), u)[:, 0]
        else:
            by = sample.scores if self.output == "best score" else sample.log_weights
            pick = by.argmax(1)
        policy = when(self.output, crowd.them.k, meter.sampler.num_steps)
        answer = picked(pick, sample.images, sample.scores, crowd.by_prompt(crowd.number), policy)
        return replace(answer, particles=sample)

    def _check(
        self, stages: Sequence[Stage], sampler: Sampler, verifier: Verifier, cond: Cond
    ) -> None:
        twists = self.proposal.twists
        ranks = self.potential.ranks and all(stage.select.ranks for stage in stages)
        require(verifier, cond, gradients=twists, across_calls=not ranks)
        copies = self.children > 1 or any(stage.select.duplicates for stage in stages)
        if copies and not sampler.stochastic:
            raise ValueError(
                "this search copies trajectories, and copies under a deterministic solver never "
                "come apart: choose a stochastic one, such as ddim with eta 1"
            )
        falls = self.children > 1 or any(stage.n != self.size for stage in stages)
        if falls and not self.potential.weighs and any(s.select.needs == "weights" for s in stages):
            raise ValueError(
                "a terminal potential gives nobody a score on the way, by which candidates could "
                "become fewer: choose another, such as value"
            )
        if twists and not hasattr(sampler, "transition"):
            raise ValueError(
                f"{type(sampler).__name__} has no Gaussian steps to push by a gradient"
            )
        if twists and [stage.k for stage in stages] != list(range(sampler.num_steps + 1)):
            raise ValueError("a gradient proposal needs a score at every step: every must be 1")


@config
class ParticleSearch(Engine):
    """Stages every so many steps, all with the same number of particles and the same selection."""

    every: int = 1
    select: Annotated[Selection, SELECTIONS] = Resample()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1:
            raise ValueError(f"every must be at least 1 step, got {self.every}")
        if self.children > 1 and self.select == Keep():
            raise ValueError("with selection keep all children would stay: children must be 1")

    def stages(self, steps: int) -> Sequence[Stage]:
        if self.every >= steps and self.select != Keep():
            raise ValueError(f"every must be below the sampler's {steps} steps, got {self.every}")
        first = 0 if self.proposal.twists else self.every
        return [Stage(k, self.n, self.select) for k in [*range(first, steps, self.every), steps]]
