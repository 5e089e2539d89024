"""What a search has spent and may still spend. Every call is reserved before it is made."""

from dataclasses import asdict, dataclass

from genvis.config import config
from genvis.types import Cost

NOTHING = Cost()


class BudgetExceededError(ValueError):
    """A reservation that would pass the budget; nothing was spent on it."""


@config
class Budget:
    """The most that may be spent over all rows, by kind; None is no limit."""

    evaluations: int | None = None
    tokens: int | None = None
    flops: int | None = None
    decodes: int | None = None
    verifications: int | None = None
    gradients: int | None = None

    def __post_init__(self) -> None:
        for kind, limit in asdict(self).items():
            if limit is not None and limit < 1:
                raise ValueError(f"a budget of {limit} {kind} buys nothing; it must be at least 1")


UNLIMITED = Budget()


@dataclass
class Ledger:
    """Totals over all rows, and what is `held` for the end. The only mutable object of a search."""

    budget: Budget = UNLIMITED
    spent: Cost = NOTHING
    held: Cost = NOTHING

    def reserve(self, cost: Cost) -> None:
        """Add `cost`, or raise `BudgetExceededError` and add nothing."""
        self._check(cost)
        self.spent += cost

    def hold(self, cost: Cost) -> None:
        """Keep `cost` back for a last call until `release`; or raise."""
        self._check(cost)
        self.held += cost

    def release(self, cost: Cost) -> None:
        self.held -= cost

    def affords(self, cost: Cost, times: int) -> int:
        """How many calls at `cost` may still be made, of the `times` that are wanted."""
        total = self.spent + self.held
        for kind, limit in asdict(self.budget).items():
            if limit is not None and getattr(cost, kind) > 0:
                times = min(times, (limit - getattr(total, kind)) // getattr(cost, kind))
        return max(times, 0)

    def _check(self, cost: Cost) -> None:
        total = self.spent + self.held + cost
        for kind, limit in asdict(self.budget).items():
            wanted = getattr(total, kind)
            if limit is not None and wanted > limit:
                raise BudgetExceededError(
                    f"the budget of {limit} {kind} is too small: the next call needs {wanted}"
                )
