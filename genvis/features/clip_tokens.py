"""CLIP's words: lower-case byte-pair encoding by the `vocab.json` and `merges.txt` of a model.

Source: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units"; the
alphabet of bytes is GPT-2's (Radford et al. 2019), the rules of words are those of transformers'
`CLIPTokenizer`. Letters: B texts, L tokens.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from genvis.checkpoint import atomic_write, read_json

START, END = "<|startoftext|>", "<|endoftext|>"
FILES = ("vocab.json", "merges.txt")
SHORT = re.compile(r"'(?:s|t|re|ve|m|ll|d)")  # words of their own


def byte_letters() -> dict[int, str]:
    """A printable letter for each byte: itself where it is one, else the next from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    rest = (byte for byte in range(256) if byte not in printable)
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(rest)}


LETTERS = byte_letters()


def words(text: str) -> Iterator[str]:
    """Runs of letters, single digits and runs of anything else, in lower case, without blanks."""
    text = "".join(character.lower() for character in unicodedata.normalize("NFC", text))
    at = 0
    while at < len(text):
        short = SHORT.match(text, at)
        kind = _kind(text[at])
        end = short.end() if short else at + 1
        while not short and kind in "L*" and end < len(text) and _kind(text[end]) == kind:
            end += 1
        if kind != " ":
            yield text[at:end]
        at = end


def _kind(character: str) -> str:
    """L a letter, N a digit or other number, blank, or * anything else."""
    if character.isspace() and character not in "\x1c\x1d\x1e\x1f":
        return " "
    category = unicodedata.category(character)[0]
    return category if category in "LN" else "*"


@dataclass(frozen=True)
class CLIPTokenizer:
    """ids by token; ranks by pair of tokens: the order in which pairs are merged."""

    ids: Mapping[str, int]
    ranks: Mapping[tuple[str, str], int]

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """ValueError if one of its two files is missing or not what it should be."""
        folder = Path(folder)
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"{folder}: no {' and no '.join(missing)}, which CLIP's prompts need")
        ids = read_json(folder / FILES[0])
        lines = (folder / FILES[1]).read_text(encoding="utf-8").splitlines()
        pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
        if not isinstance(ids, dict) or not {START, END} <= ids.keys():
            raise ValueError(f"{folder / FILES[0]}: not a CLIP vocabulary: no {START} or no {END}")
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"{folder / FILES[1]}: a line is not a pair of tokens")
        return cls(ids, {(pair[0], pair[1]): rank for rank, pair in enumerate(pairs)})

    @classmethod
    def of_words(cls, vocabulary: Iterable[str]) -> Self:
        """One token for each of these words; any other is spelled in bytes, as in every CLIP.

        The merges are learned as Sennrich et al. do: the most frequent pair is merged, until every
        word is whole. ValueError for what is not one word, such as "two words" or "x1".
        """
        wanted = dict.fromkeys(vocabulary)
        if wrong := [word for word in wanted if list(words(word)) != [word]]:
            raise ValueError(f"not one word in lower case: {wrong[0]!r}")
        parts = {word: spelled(word) for word in wanted}
        merges: list[tuple[str, str]] = []
        while pairs := Counter(pair for each in parts.values() for pair in pairwise(each)):
            merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
            parts = {word: tuple(_joined(each, merges[-1])) for word, each in parts.items()}
        letters = [*LETTERS.values()]
        tokens = [*letters, *(f"{x}</w>" for x in letters), *map("".join, merges), START, END]
        ids = {token: i for i, token in enumerate(dict.fromkeys(tokens))}  # two merges may agree
        return cls(ids, {pair: rank for rank, pair in enumerate(merges)})

    def save(self, folder: str | Path) -> None:
        """The two files that `from_folder` reads, and transformers' `CLIPTokenizer` too."""
        atomic_write(Path(folder, FILES[0]), json.dumps(self.ids, ensure_ascii=False) + "\n")
        merges = sorted(self.ranks, key=lambda pair: self.ranks[pair])
        lines = ["#version: 0.2", *map(" ".join, merges), ""]
        atomic_write(Path(folder, FILES[1]), "\n".join(lines))

    @classmethod
    def find(cls, model: str | Path | None, given: str | Path | None) -> Self | None:
        """From the folder given; else from the model's, where it is there."""
        if given is not None:
            return cls.from_folder(given)
        there = model is not None and all((Path(model) / name).is_file() for name in FILES)
        return cls.from_folder(str(model)) if there else None

    def __call__(self, texts: Sequence[str], context: int = 77) -> Tensor:
        """(B, L) int64, L the longest text's; padded at the end, where a causal network that is
        read at the first `END` does not look. ValueError for more than `context` tokens.
        """
        rows = [self.encode(text) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if len(row) > context:
                raise ValueError(
                    f"the prompt {text[:40]!r} has {len(row)} tokens, more than the {context} "
                    "that this CLIP reads; shorten it"
                )
        longest = max(map(len, rows))
        return torch.tensor([row + [self.ids[END]] * (longest - len(row)) for row in rows])

    def encode(self, text: str) -> list[int]:
        """`START`, the text's tokens, `END`; what the vocabulary lacks is `END` too."""
        found = [token for word in words(text) for token in self._merged(word)]
        return [self.ids.get(token, self.ids[END]) for token in (START, *found, END)]

    @cached_property
    def _known(self) -> dict[str, tuple[str, ...]]:
        return {}

    def _merged(self, word: str) -> tuple[str, ...]:
        if word not in self._known:
            self._known[word] = self._merge(word)
        return self._known[word]

    def _merge(self, word: str) -> tuple[str, ...]:
        """The first pair in the order of merges, wherever it is, until there is none."""
        parts = spelled(word)
        last = len(self.ranks)
        while len(parts) > 1:
            best = min(pairwise(parts), key=lambda pair: self.ranks.get(pair, last))
            if best not in self.ranks:
                break
            parts = tuple(_joined(parts, best))
        return parts


def spelled(word: str) -> tuple[str, ...]:
    """A word's bytes as letters, the last one marked as the word's end."""
    letters = [LETTERS[byte] for byte in word.encode()]
    return *letters[:-1], letters[-1] + "</w>"


def _joined(parts: Sequence[str], pair: tuple[str, str]) -> Iterator[str]:
    at = 0
    while at < len(parts):
        both = tuple(parts[at : at + 2]) == pair
        yield "".join(pair) if both else parts[at]
        at += 1 + both
