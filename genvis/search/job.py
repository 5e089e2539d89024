"""A study with its parts at hand: what one group of images may spend, and what is found for it.

Letters: B images of a group.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from genvis.config import dump
from genvis.random import HashKeys
from genvis.samplers.flops import counted
from genvis.samplers.generate import price
from genvis.search.best_of_n import BestOfN
from genvis.search.ledger import Budget, BudgetExceededError, Ledger
from genvis.search.makers import Maker
from genvis.search.refined import Refined
from genvis.search.result import SearchResult
from genvis.search.study import Study
from genvis.types import Cond, Cost, Verifier
from genvis.verifiers.scoring import grown, remembers, require


@dataclass(frozen=True)
class Job:
    study: Study
    maker: Maker
    verifier: Verifier
    judge: Verifier

    @classmethod
    def of(cls, study: Study, maker: Maker) -> "Job":
        """ValueError for what would otherwise fail only once images are made."""
        verifier, judge = study.verifier.build(), study.judge.build()
        if verifier.name == judge.name:
            raise ValueError(f"judge must differ from verifier, but both are {judge.name}")
        if remembers(judge):
            raise ValueError(f"{judge.name} judges sets of images: the judge must see single ones")
        every = maker.cond(range(min(study.count, len(maker.things))))
        require(verifier, every, previews=True, across_calls=False)  # the search knows better
        require(judge, every, across_calls=True)
        first = maker.cond(range(1))
        if study.flops or study.limit.flops is not None:
            final = None if maker.final is None else counted(maker.final, first)
            maker = replace(maker, sampler=counted(maker.sampler, first), final=final)
        one = asdict(price(maker.plain) + Cost(verifications=1))
        for kind, most in asdict(study.limit).items():
            if most is not None and most < one[kind]:
                raise ValueError(f"limit.{kind}: {most} buy no image, which takes {one[kind]}")
        return cls(study, maker, verifier, judge)

    @property
    def identity(self) -> dict[str, Any]:
        names = {"verifier_weights": self.verifier.name, "judge_weights": self.judge.name}
        return {**self.maker.identity, **names, **dump(self.study)}

    def after(self, images: Tensor) -> "Job":
        """The same, where these (B, 3, H, W) were chosen before."""
        return replace(self, verifier=grown(self.verifier, images))

    def given(self, rows: range) -> tuple[Cond, HashKeys]:
        return self.maker.cond(rows), self.study.keys(rows)

    def rounds(self, rows: range) -> Iterator[tuple[SearchResult, Ledger]]:
        """The best so far for a group, and what was spent on it."""
        search: Any = self.study.search
        if self.maker.final is not None:
            search = Refined(search, self.maker.final)
        ledger = Ledger(self.budget(len(rows)))
        cond, keys = self.given(rows)
        try:
            for result in search.rounds(self.maker.sampler, cond, self.verifier, keys, ledger):
                yield result, ledger
        except BudgetExceededError as error:
            raise BudgetExceededError(f"{error}, for a group of {len(rows)} images") from error

    def plain(self, rows: range, kept: dict[int, SearchResult]) -> SearchResult:
        """What no search gives, by the same keys: the first candidates of one that was among whole
        images; else they are made now, and not counted as the search's.
        """
        first = kept.get(1)
        if self.maker.final is None and first is not None and first.noise is not None:
            return first
        one = BestOfN(n=1, chunk=getattr(self.study.search, "chunk", 64))
        cond, keys = self.given(rows)
        return one(self.maker.plain, cond, self.verifier, keys, Ledger())

    def budget(self, rows: int) -> Budget:
        """What may be spent on so many images: the limit, and no more than the last snapshot."""
        kind, one = self.maker.unit
        most = {name: value for name, value in asdict(self.study.limit).items() if value}
        if self.study.budgets is not None:
            last = one * self.study.budgets[-1]
            most[kind] = min(most.get(kind, last), last)
        return Budget(**{name: value * rows for name, value in most.items()})

    def snapshot(self, spent: Cost, rows: int) -> int:
        """The budget under which something is kept that cost so much: the next one."""
        kind, one = self.maker.unit
        units = getattr(spent, kind) / (one * rows)
        if self.study.budgets is not None:
            return next(budget for budget in self.study.budgets if units <= budget)
        budget = 1
        while budget < units:
            budget *= 2
        return budget
