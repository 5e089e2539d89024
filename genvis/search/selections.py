"""Selections: which candidates go on, and with what weight.

Letters: B prompts; C candidates of each, of which M neighbours are children of one parent; N of
them go on.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from genvis.config import config
from genvis.random import Keys
from genvis.search import FEATURES
from genvis.search.features import Features, Patches, representatives
from genvis.search.resampling import RULES, Scheme, ess, inverse_cdf, log_mean

Needs = Literal["weights", "images", "nothing"]


@dataclass(frozen=True)
class Choice:
    """rows (B, N) ascending, their log weights (B, N), and what was added to log Z (B,)."""

    rows: Tensor
    log_w: Tensor
    log_z: Tensor


class Selection(Protocol):
    """needs: what it goes by; proper: whether weighted averages stay what they were; duplicates:
    whether it can choose one candidate twice; ranks: whether only the order of the weights counts.
    """

    needs: ClassVar[Needs]
    proper: ClassVar[bool]
    duplicates: ClassVar[bool]
    ranks: ClassVar[bool]

    def __call__(self, log_w: Tensor, images: Tensor, n: int, children: int, keys: Keys) -> Choice:
        """n of the candidates with log weights (B, C) and images (B, C, 3, H, W); B keys."""
        ...


@config
class Keep:
    """All of them, with their weights."""

    needs: ClassVar[Needs] = "nothing"
    proper: ClassVar[bool] = True
    duplicates: ClassVar[bool] = False
    ranks: ClassVar[bool] = True

    def __call__(self, log_w: Tensor, images: Tensor, n: int, children: int, keys: Keys) -> Choice:
        return Choice(torch.arange(log_w.shape[1]).expand_as(log_w), log_w, _nothing(log_w))


@config
class Resample:
    """Children by weight, where the effective sample size is below threshold N; elsewhere all stay
    and keep their weights. Their number changes only by resampling: it stays, as they do, where
    copies could not come apart any more.
    """

    needs: ClassVar[Needs] = "weights"
    proper: ClassVar[bool] = True
    duplicates: ClassVar[bool] = True
    ranks: ClassVar[bool] = False
    scheme: Scheme = "systematic"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be in (0, 1], got {self.threshold}")

    def __call__(self, log_w: Tensor, images: Tensor, n: int, children: int, keys: Keys) -> Choice:
        count, rule = log_w.shape[1], RULES[self.scheme]
        u = keys.uniform((rule.uniforms(count, n),))
        drawn = rule.parents(log_w.softmax(-1), u, n).sort(-1).values
        if n != count:
            return Choice(drawn, torch.zeros_like(drawn, dtype=log_w.dtype), log_mean(log_w))
        now = (ess(log_w) < self.threshold * n)[:, None]
        rows = torch.where(now, drawn, torch.arange(n))
        return Choice(rows, log_w.masked_fill(now, 0), torch.where(now[:, 0], log_mean(log_w), 0.0))


@config
class _Best:
    """What keeps the best and forgets the weights: all that counts next is the next tilt."""

    needs: ClassVar[Needs] = "weights"
    proper: ClassVar[bool] = False
    duplicates: ClassVar[bool] = False
    ranks: ClassVar[bool] = True


@config
class Top(_Best):
    """The n with the largest weights: a beam."""

    def __call__(self, log_w: Tensor, images: Tensor, n: int, children: int, keys: Keys) -> Choice:
        return _even(log_w.argsort(dim=-1, descending=True, stable=True)[:, :n].sort(-1).values)


@config
class BestChild(_Best):
    """Of every parent's children the one with the largest weight: independent chains."""

    def __call__(self, log_w: Tensor, images: Tensor, n: int, children: int, keys: Keys) -> Choice:
        return _even(_first(log_w, children) + log_w.unflatten(1, (-1, children)).argmax(-1))


@config
class DrawnChild(_Best):
    """One of every parent's children, drawn by weight."""

    ranks: ClassVar[bool] = False

    def __call__(self, log_w: Tensor, images: Tensor, n: int, children: int, keys: Keys) -> Choice:
        w = log_w.unflatten(1, (-1, children)).softmax(-1)  # (B, N, M)
        u = keys.uniform((w.shape[1], 1))
        return _even(_first(log_w, children) + inverse_cdf(w, u)[..., 0])


@config
class Clusters(_Best):
    """Of n clusters of the previews, the member nearest to each centre: no scores, but variety."""

    needs: ClassVar[Needs] = "images"
    features: Annotated[Features, FEATURES] = Patches()

    def __call__(self, log_w: Tensor, images: Tensor, n: int, children: int, keys: Keys) -> Choice:
        seen = self.features(images.flatten(0, 1)).unflatten(0, log_w.shape)  # (B, C, D)
        return _even(torch.stack([
            representatives(own, n, u) for own, u in zip(seen, keys.uniform((n,)), strict=True)
        ]))  # fmt: skip


def _first(log_w: Tensor, children: int) -> Tensor:
    """The first child's place of every parent, (N,)."""
    return torch.arange(0, log_w.shape[1], children)


def _even(rows: Tensor) -> Choice:
    log_w = torch.zeros_like(rows, dtype=torch.float64)
    return Choice(rows, log_w, _nothing(log_w))


def _nothing(log_w: Tensor) -> Tensor:
    return torch.zeros(len(log_w), dtype=torch.float64)
