"""What a person at a terminal sees: one line for a mistake, a bar for long work. Needs no torch."""

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
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


def bar(label: str, total: int, show: bool = True) -> tqdm:
    """A progress bar on stderr that the caller moves: `update(n)`, `set_postfix_str(text)`."""
    return tqdm(
        desc=label, total=total, disable=not show, dynamic_ncols=True, mininterval=0.5, miniters=0
    )


def note(text: str) -> None:
    """A line on stderr about something that the user allowed and should know of."""
    print(f"note: {text}", file=sys.stderr)


def parser(doc: str | None) -> ArgumentParser:
    """A script's parser, whose help shows the script's docstring as it is written."""
    return ArgumentParser(description=doc, formatter_class=RawDescriptionHelpFormatter)


def takes_model(script: ArgumentParser) -> None:
    """The arguments of a script that starts from a generator: `model` and `--trust-code`."""
    script.add_argument("model", help="a run folder, a model folder or a hub id")
    script.add_argument(
        "--trust-code",
        action="store_true",
        help="let the model's config import code outside genvis",
    )


def takes_overrides(script: ArgumentParser, text: str) -> None:
    """Any number of dotted overrides, after the script's other positional arguments."""
    script.add_argument("overrides", nargs="*", metavar="a.b=c", help=text)


def takes_prompts(script: ArgumentParser) -> None:
    """The arguments of a script that makes images of texts: `--prompt` and `--prompts`."""
    script.add_argument("--prompt", action="append", help="an image of this; may be repeated")
    script.add_argument("--prompts", help="a text file: a line an image")


def prompts_of(args: Namespace) -> list[str]:
    """What `takes_prompts` was given."""
    return [*(args.prompt or ()), *(prompt_lines(args.prompts) if args.prompts else ())]


def prompt_lines(path: str) -> tuple[str, ...]:
    """The lines of a text file that are not blank, whatever ends them, without a byte-order mark.
    ValueError for none, or if it is missing.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # which reads \r\n as \n
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8: {error}") from error
    # not splitlines: a prompt may hold the line breaks of Unicode
    if not (lines := tuple(filter(str.strip, text.split("\n")))):
        raise ValueError(f"{path}: empty")
    return lines


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
