"""How far a value would move with other images: the delete-a-group jackknife.

The N images fall into G groups at random; with v of all of them and v_g of all but group g, the
pseudo-values p_g = G v - (G - 1) v_g scatter as G independent measurements would. Their mean is
free of the bias of order 1/N that a Frechet distance has, and mean +- t sd(p) / sqrt(G), Student's
t with G - 1 degrees of freedom, is an interval for the value of infinitely many images.
It knows nothing of the reference: what that lacks in size stays in. Groups need no feature kept,
only a streamed statistic each.
Source: Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 11; Shao and Tu 1995,
"The jackknife and bootstrap", section 2.3 (groups; also for values that are not smooth).
Letters: N images, G groups.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from scipy.stats import t as student
from torch import Tensor

from genvis.evaluation.statistics import Statistics
from genvis.random import permutation


@dataclass(frozen=True)
class Jackknife:
    """value of all images; corrected: without the bias of order 1/N; error: of the latter."""

    value: float
    corrected: float
    error: float
    groups: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """For the value of infinitely many images; its low end may lie below zero."""
        half = float(student.ppf((1 + level) / 2, self.groups - 1)) * self.error
        return self.corrected - half, self.corrected + half


def jackknife(value: float, without: Sequence[float]) -> Jackknife:
    """From the value of all groups, and that without each of them (G of them, at least 2)."""
    groups = len(without)
    if groups < 2:
        raise ValueError(f"a jackknife needs at least 2 groups, got {groups}")
    pseudo = groups * value - (groups - 1) * torch.tensor(without, dtype=torch.float64)
    return Jackknife(value, float(pseudo.mean()), float(pseudo.std()) / groups**0.5, groups)


def jackknife_statistics(
    groups: Sequence[Statistics], value: Callable[[Statistics], float]
) -> Jackknife:
    """Of a value of streamed statistics, given per group."""
    rest = [reduce(add, [*groups[:g], *groups[g + 1 :]]) for g in range(len(groups))]
    return jackknife(value(reduce(add, groups)), [value(each) for each in rest])


def random_groups(n: int, groups: int, seed: int = 0) -> Tensor:
    """The group (n,) of each of n images: sizes differ by one at most, order says nothing."""
    return permutation(n, seed) % groups
