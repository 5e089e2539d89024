"""What a search has spent and may still spend. Every call is reserved before it is made."""

from dataclasses import dataclass, fields

from genvis.types import Cost

NOTHING = Cost()


class BudgetExceededError(ValueError):
    """A reservation that would pass the budget; nothing was spent on it."""


@dataclass
class Ledger:
    """Totals over all rows; `budget` limits the kinds it names. The only mutable object of a
    search.
    """

    budget: Cost | None = None  # fields that are 0 are not limited
    spent: Cost = NOTHING

    def reserve(self, cost: Cost) -> None:
        """Add `cost`, or raise `BudgetExceededError` and add nothing."""
        total = self.spent + cost
        for kind in fields(total) if self.budget else ():
            limit, wanted = getattr(self.budget, kind.name), getattr(total, kind.name)
            if limit and wanted > limit:
                raise BudgetExceededError(
                    f"the budget of {limit} {kind.name} is too small: the next call needs {wanted}"
                )
        self.spent = total
