"""A search as a config: what is searched for, by which method, and who judges what it found."""

from collections.abc import Iterator
from typing import Annotated

from genvis.config import config
from genvis.random import HashKeys
from genvis.samplers import SAMPLERS
from genvis.samplers.base import SamplerChoice
from genvis.search import SEARCHES
from genvis.search.ledger import UNLIMITED, Budget
from genvis.search.result import Search
from genvis.types import VerifierConfig
from genvis.verifiers import VERIFIERS


@config
class Study:
    """Image i has keys of (seed, i) and label classes[i mod K] or prompt prompts[i mod P].

    final: another sampler, which makes what was found again, for more steps than a search can
    afford; budgets: where a snapshot is kept of what was found so far, in units of what one image
    costs without search; the search ends at the last of them. By default they double as far as the
    search goes. limit: the most that may be spent on one image, of any kind.
    """

    sampler: Annotated[SamplerChoice, SAMPLERS] | None = None  # default: as the model suggests
    final: Annotated[SamplerChoice, SAMPLERS] | None = None
    search: Annotated[Search, SEARCHES]
    verifier: Annotated[VerifierConfig, VERIFIERS]
    judge: Annotated[VerifierConfig, VERIFIERS]
    budgets: tuple[int, ...] | None = None
    limit: Budget = UNLIMITED
    count: int = 100
    seed: int = 0
    classes: tuple[int, ...] | None = None  # default: all of them in turn
    prompts: tuple[str, ...] | None = None
    negative: str | None = None  # a prompt to steer away from, in guidance
    group: int = 16  # images searched together: what a killed search has to make again
    flops: bool = False  # count them too, which takes one image more
    png: bool = False  # images/000123.png beside samples.npz

    def __post_init__(self) -> None:
        if self.count < 1 or self.group < 1:
            raise ValueError(
                f"count and group must be at least 1, got {self.count} and {self.group}"
            )
        given = self.budgets
        if given is not None and (not given or list(given) != sorted({b for b in given if b > 0})):
            raise ValueError(
                f"budgets must rise from at least 1 times one image, got {list(given)}"
            )
        if self.classes is not None and self.prompts is not None:
            raise ValueError("give classes or prompts, not both")
        if self.classes == () or self.prompts == ():
            raise ValueError("classes and prompts must name at least one, or be null")
        if self.verifier == self.judge:
            raise ValueError(
                "judge must differ from verifier, or its score says nothing about what was found"
            )

    def keys(self, rows: range) -> HashKeys:
        return HashKeys.of(self.seed, rows).fold("sample")

    def groups(self) -> Iterator[range]:
        for start in range(0, self.count, self.group):
            yield range(self.count)[start : start + self.group]
