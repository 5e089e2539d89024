"""What happens to a prompt that an encoder cannot take whole: too long, or of unknown words."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Literal

from genvis.console import note

Unfit = Literal["error", "note"]  # refuse it, or encode what is left of it and say what is lost


def answer(unfit: Unfit, problem: Callable[[str], str | None], prompts: Iterable[str]) -> None:
    """ValueError for the first prompt with a problem, or a note for each, once."""
    for said in filter(None, map(problem, dict.fromkeys(prompts))):
        if unfit == "error":
            raise ValueError(f"{said} (text.unfit: note would go on without them)")
        _once(said)


@cache
def _once(said: str) -> None:
    note(said)
