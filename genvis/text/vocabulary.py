"""Prompts as numbers of whole words.

A prompt is taken in Unicode's NFC, in lower case, and split at blanks. A row is `<bos>`, its words,
`<eos>`, and `<pad>` up to a fixed length; the empty prompt is `<bos> <null> <eos>`.
Letters: B prompts, L tokens.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property

import torch
from torch import Tensor

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<null>")
PAD, BOS, EOS, UNKNOWN, NULL = range(5)

# of the captions of the dataset `shapes`, in the order of their published numbers, from 5 on
SHAPES = (
    *("a", "an", "and", "the", "to", "of", "on", "above", "below", "left", "right", "background"),
    *("two", "three", "four", "five", "small", "large"),
    *("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink"),
    *("black", "gray", "white"),
    *("circle", "square", "triangle", "diamond", "cross", "ring", "star", "heart"),
    *("circles", "squares", "triangles", "diamonds", "crosses", "rings", "stars", "hearts"),
)


def words_of(prompt: str) -> list[str]:
    return unicodedata.normalize("NFC", prompt).lower().split()


@dataclass(frozen=True)
class Vocabulary:
    """words have the numbers after those of `SPECIAL`; length: L, with `<bos>` and `<eos>`."""

    words: tuple[str, ...]
    length: int

    @cached_property
    def numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate((*SPECIAL, *self.words))}

    def problem(self, prompt: str) -> str | None:
        """What of a prompt would be lost, None if nothing is."""
        found, most = words_of(prompt), self.length - 2
        if len(found) > most:
            lost = " ".join(found[most:])
            return f"the prompt {prompt!r} has {len(found)} words, and {most} fit: without {lost!r}"
        unknown = [word for word in found if word not in self.words]
        if unknown:
            named = ", ".join(map(repr, dict.fromkeys(unknown)))
            near = get_close_matches(unknown[0], self.words, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            return f"the prompt {prompt!r} has words that this model never saw: {named}{hint}"
        return None

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """(B, L) int64. What does not fit is cut, unknown words are `<unk>`: see `problem`."""
        return torch.tensor([self._row(words_of(prompt)) for prompt in prompts])

    def text(self, row: Tensor) -> str:
        """The words of a row (L,), one blank between them."""
        names = (*SPECIAL, *self.words)
        silent = (PAD, BOS, EOS, NULL)
        return " ".join(names[number] for number in row.tolist() if number not in silent)

    def _row(self, words: list[str]) -> list[int]:
        said = [self.numbers.get(word, UNKNOWN) for word in words[: self.length - 2]]
        row = [BOS, *(said or [NULL]), EOS]
        return row + [PAD] * (self.length - len(row))
