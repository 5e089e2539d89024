"""Per-row random numbers that depend on nothing but the row's key.

An image is a function of (weights, noise, cond, keys): batch size, chunking, number of processes
and resuming never change it. Row i holds one 64-bit key; draw k of a key is a hash of (key, k), so
any draw can be made at any time, in any order, on any device.

Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators" (the finaliser
of SplitMix64).
Letters: B rows, h a key, k the number of a draw.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol, Self

import torch
from torch import Tensor

GAMMA, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
ROOT = 0x243F6A8885A308D3  # the key that every stream starts from


class Keys(Protocol):
    """One source of random numbers per row. A protocol, so that tests can inject recorded noise."""

    def fold(self, *words: int | str) -> Self:
        """Fresh keys for a purpose, such as `fold("step", 3)`: same rows, independent numbers."""
        ...

    def split(self, n: int) -> Self:
        """n independent keys for every row, rows first: (B,) -> (B n,)."""
        ...

    def normal(self, shape: Sequence[int], device: torch.device | str | None = None) -> Tensor:
        """Standard normals (B, *shape), float32, on `device` (default: where the keys are)."""
        ...

    def uniform(
        self, shape: Sequence[int] = (), device: torch.device | str | None = None
    ) -> Tensor:
        """Uniforms in [0, 1), (B, *shape), float64."""
        ...


@dataclass(frozen=True)
class HashKeys:
    """`Keys` by counting and hashing: h (B,) int64, read as unsigned."""

    h: Tensor

    @classmethod
    def of(
        cls, seed: int, rows: Sequence[int] | Tensor | range, device: torch.device | str = "cpu"
    ) -> "HashKeys":
        """Keys of row numbers under one seed; row i is the same whichever rows are beside it."""
        rows = rows if isinstance(rows, Tensor) else torch.tensor(list(rows), dtype=torch.int64)
        if rows.ndim != 1 or rows.dtype != torch.int64:
            raise ValueError(
                f"rows must be one dimension of int64, got {tuple(rows.shape)} {rows.dtype}"
            )
        return cls(_mix(_signed(stream(seed)) ^ rows.to(device)))

    def __len__(self) -> int:
        return len(self.h)

    def fold(self, *words: int | str) -> "HashKeys":
        h = self.h
        for word in words:
            h = _mix(h ^ _word(word))
        return HashKeys(h)

    def split(self, n: int) -> "HashKeys":
        children = torch.arange(n, device=self.h.device)
        return HashKeys(_mix(self.fold("split").h[:, None] ^ children).flatten())

    def normal(self, shape: Sequence[int], device: torch.device | str | None = None) -> Tensor:
        # 52 bits, so that adding a half is exact
        bits = _shift(self._draws(shape, device), 12).double()
        return torch.special.ndtri((bits + 0.5) * 2.0**-52).float()

    def uniform(
        self, shape: Sequence[int] = (), device: torch.device | str | None = None
    ) -> Tensor:
        return _shift(self._draws(shape, device), 11).double() * 2.0**-53

    def _draws(self, shape: Sequence[int], device: torch.device | str | None) -> Tensor:
        h = self.h if device is None else self.h.to(device)
        k = torch.arange(1, math.prod(shape) + 1, device=h.device)
        return _mix(h[:, None] + k * _signed(GAMMA)).view(len(h), *shape)


def stream(*words: int) -> int:
    """The key that a sequence of words leads to, as an unsigned Python integer."""
    h = ROOT
    for word in words:
        h = _mix_one(h ^ word % 2**64)
    return h


def uniforms(*words: int) -> Iterator[float]:
    """The uniforms in [0, 1) of one stream, one after the other: draws 1, 2, ... of its key."""
    h = stream(*words)
    return ((_mix_one(h + k * GAMMA) >> 11) * 2.0**-53 for k in count(1))


def permutation(n: int, *words: int) -> Tensor:
    """A random order of 0..n-1 that is a function of the words alone, (n,) int64."""
    keys = HashKeys(torch.tensor([_signed(stream(*words))]))
    return keys.uniform((n,))[0].argsort()


def _mix(z: Tensor) -> Tensor:
    z = z + _signed(GAMMA)  # int64 arithmetic wraps, as the hash wants
    z = (z ^ _shift(z, 30)) * _signed(MIX_1)
    z = (z ^ _shift(z, 27)) * _signed(MIX_2)
    return z ^ _shift(z, 31)


def _mix_one(z: int) -> int:
    """`_mix` of one unsigned number, without the cost of a tensor."""
    z = (z + GAMMA) % 2**64
    z = (z ^ z >> 30) * MIX_1 % 2**64
    z = (z ^ z >> 27) * MIX_2 % 2**64
    return z ^ z >> 31


def _shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & (2 ** (64 - bits) - 1)  # a logical shift: torch's keeps the sign


def _signed(word: int) -> int:
    word %= 2**64
    return word - 2**64 if word >= 2**63 else word


def _word(word: int | str) -> int:
    if isinstance(word, str):
        word = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
    return _signed(word)
