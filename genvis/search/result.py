"""What a search returns and how it is called."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from genvis.random import HashKeys
from genvis.search.ledger import Ledger
from genvis.types import Cond, Sampler, Verifier


@dataclass(frozen=True)
class SearchResult:
    """images (B, 3, H, W), the noise (B, ...) that made them, and the best score so far after each
    candidate (B, n).
    """

    images: Tensor
    noise: Tensor
    scores: Tensor


class Search(Protocol):
    """A method that has `n` candidates per image to spend and an answer after each of them."""

    @property
    def n(self) -> int: ...
    def rounds(
        self, sampler: Sampler, cond: Cond, verifier: Verifier, keys: HashKeys, ledger: Ledger
    ) -> Iterator[SearchResult]: ...
    def __call__(
        self, sampler: Sampler, cond: Cond, verifier: Verifier, keys: HashKeys, ledger: Ledger
    ) -> SearchResult: ...
