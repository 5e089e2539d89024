"""Several verifiers as one: by mean rank among rivals, or by mean z-score on frozen scales.

A rank says who wins among the candidates that are there, and means nothing beside another set: it
selects, but cannot be compared over calls, subtracted or exponentiated. A z-score whose mean and
standard deviation are fixed beforehand can.
Source: Ma et al. 2025, "Inference-time Scaling for Diffusion Models beyond Scaling Denoising
Steps", section 5 (unweighted mean of ranks).
Letters: V verifiers, N images, n candidates of one prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

import torch
from torch import Tensor

from genvis.config import config
from genvis.types import Cond, Verifier, VerifierConfig
from genvis.verifiers import VERIFIERS
from genvis.verifiers.scoring import Need, needs_of, remembers, scores_of


def ranks(scores: Tensor) -> Tensor:
    """Ranks (..., n) float64 along the last axis: 1 is the highest score, ties share the mean."""
    if scores.isnan().any():
        raise ValueError("scores hold NaN, which has no rank")
    mine, theirs = scores[..., :, None], scores[..., None, :]
    better, equal = (theirs > mine).sum(-1), (theirs == mine).sum(-1)  # equal to itself too
    return better + (equal.double() + 1) / 2


def mean_rank(scores: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Scores (V, ..., n) -> (..., n) float64; the smallest is the best."""
    return _mean(ranks(scores), weights)


def mean_z(scores: Tensor, means: Tensor, stds: Tensor) -> Tensor:
    """Scores (V, ..., n), means and stds (V,) -> (..., n) float64; the largest is the best."""
    shape = (-1, *[1] * (scores.ndim - 1))
    return ((scores.double() - means.view(shape)) / stds.view(shape)).mean(0)


def best_first(scores: Tensor) -> Tensor:
    """The order of the last axis from the highest score down; ties in the order given."""
    return scores.argsort(dim=-1, descending=True, stable=True)


def _mean(values: Tensor, weights: Sequence[float] | None) -> Tensor:
    w = values.new_tensor([1.0] * len(values) if weights is None else list(weights))
    return torch.tensordot(w / w.sum(), values, 1)


@dataclass(frozen=True)
class Ensemble:
    """What both kinds have."""

    of: tuple[Verifier, ...]

    def __post_init__(self) -> None:
        if not self.of:
            raise ValueError("an ensemble needs at least one verifier")
        if changing := [each.name for each in self.of if remembers(each)]:
            raise ValueError(f"{changing[0]} cannot be in an ensemble: it changes as it goes")

    @property
    def needs(self) -> tuple[Need, ...]:
        return tuple(dict.fromkeys(need for each in self.of for need in needs_of(each)))

    def check(self, cond: Cond) -> None:
        for each in self.of:
            if hasattr(each, "check"):
                each.check(cond)

    def table(self, images: Tensor, cond: Cond, previews: Tensor | None = None) -> Tensor:
        """Everyone's scores (V, N)."""
        return torch.stack([scores_of(each, images, cond, previews) for each in self.of])


@dataclass(frozen=True)
class RankEnsemble(Ensemble):
    """Minus the mean rank. A search that keeps scores in a table of its own calls `table`, then
    `combine` on the candidates of each prompt.
    """

    weights: tuple[float, ...] | None = None
    differentiable: ClassVar[bool] = False
    per_image: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is not None:
            _check_count("weights", self.weights, len(self.of))
            if min(self.weights) < 0 or not sum(self.weights) > 0:
                raise ValueError(f"weights must be at least 0, one above, got {self.weights}")

    @property
    def name(self) -> str:
        return f"mean rank of {' and '.join(each.name for each in self.of)}"

    def combine(self, table: Tensor) -> Tensor:
        """(V, ..., n) -> (..., n) float64, n the candidates of one prompt; higher is better."""
        return -mean_rank(table, self.weights)

    def __call__(self, images: Tensor, cond: Cond, previews: Tensor | None = None) -> Tensor:
        """(N,), where rows with the same label and prompt are rivals."""
        table = self.table(images, cond, previews)
        found = torch.empty(len(images), dtype=torch.float64, device=table.device)
        for rows in _rivals(cond, len(images)):
            found[rows] = self.combine(table[:, rows])
        return found


@dataclass(frozen=True)
class ZScoreEnsemble(Ensemble):
    """The mean of (score - mean) / std, with means and stds (V,) that never change."""

    means: tuple[float, ...]
    stds: tuple[float, ...]
    per_image: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for what, values in (("means", self.means), ("stds", self.stds)):
            _check_count(what, values, len(self.of))
        for each, std in zip(self.of, self.stds, strict=True):
            if not std > 0:
                raise ValueError(f"stds must be positive, got {std} for {each.name}")
            if not getattr(each, "per_image", True):
                raise ValueError(f"{each.name} has no scale to freeze: it ranks, in a set")

    @classmethod
    def fitted(
        cls, of: Sequence[Verifier], images: Tensor, cond: Cond, previews: Tensor | None = None
    ) -> Self:
        """On the scales of some images (N, 3, H, W), such as plain samples; divisor N."""
        table = Ensemble(tuple(of)).table(images, cond, previews).double()
        return cls(tuple(of), tuple(table.mean(1).tolist()), tuple(table.std(1, False).tolist()))

    @property
    def name(self) -> str:
        return f"mean z of {' and '.join(each.name for each in self.of)}"

    @property
    def differentiable(self) -> bool:
        return all(getattr(each, "differentiable", False) for each in self.of)

    def __call__(self, images: Tensor, cond: Cond, previews: Tensor | None = None) -> Tensor:
        table = self.table(images, cond, previews)
        means, stds = (table.new_tensor(x, dtype=torch.float64) for x in (self.means, self.stds))
        return mean_z(table, means, stds)


@config
class RankEnsembleConfig:
    of: tuple[Annotated[VerifierConfig, VERIFIERS], ...]
    weights: tuple[float, ...] | None = None

    def build(self) -> RankEnsemble:
        return RankEnsemble(tuple(each.build() for each in self.of), self.weights)


@config
class ZScoreEnsembleConfig:
    """means and stds: of each verifier's scores, as `ZScoreEnsemble.fitted` finds them."""

    of: tuple[Annotated[VerifierConfig, VERIFIERS], ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]

    def build(self) -> ZScoreEnsemble:
        return ZScoreEnsemble(tuple(each.build() for each in self.of), self.means, self.stds)


def _rivals(cond: Cond, n: int) -> list[list[int]]:
    labels = [None] * n if cond.label is None else cond.label.tolist()
    prompts = (None,) * n if cond.prompts is None else cond.prompts
    groups: dict[object, list[int]] = {}
    for row, key in enumerate(zip(labels, prompts, strict=True)):
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _check_count(what: str, values: Sequence[float], wanted: int) -> None:
    if len(values) != wanted:
        raise ValueError(f"{what} must have one entry per verifier, {wanted}, got {len(values)}")
