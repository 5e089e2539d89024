"""What a person at a terminal sees: one line for a mistake, a bar for long work. Needs no torch."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(
    items: Iterable[T], label: str, total: int | None = None, show: bool = True
) -> Iterator[T]:
    """The items, with a progress bar on stderr."""
    return iter(
        tqdm(
            items,
            desc=label,
            total=total,
            disable=not show,
            leave=True,
            dynamic_ncols=True,
            mininterval=0.5,
        )
    )


def run(main: Callable[[], None]) -> None:
    """Run a script; a mistake of the user's ends it with one clear line and exit status 2."""
    try:
        main()
    except (ValueError, OSError, ArithmeticError, ImportError) as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(error: Exception) -> NoReturn:
    name = "error" if type(error).__name__ in ("ValueError", "OSError") else type(error).__name__
    for line in str(error).splitlines() or [""]:
        print(f"{name}: {line}", file=sys.stderr)
    sys.exit(2)
