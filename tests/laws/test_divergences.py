"""Divergences of logits: what holds for all of them, and how they are related."""

import itertools

import pytest
import torch
from torch import Tensor

from genvis.config import ConfigError
from genvis.objectives import DIVERGENCES
from genvis.objectives.divergences import (
    CAKLD,
    Divergence,
    Forward,
    KLTop,
    Reverse,
    Squared,
    TopKBucket,
    TopKLD,
    tempered,
)
from genvis.random import HashKeys

V = 24
ALL: list[Divergence] = [
    Forward(),
    Reverse(),
    CAKLD(beta=0.3),
    TopKLD(k=5, explicit_weight=0.7, implicit_weight=1.5),
    TopKLD(k=5, explicit="forward", implicit="reverse"),
    KLTop(k=5),
    TopKBucket(k=5),
    Squared(),
]


def logits(seed: int, scale: float = 3.0) -> Tensor:
    return scale * HashKeys.of(seed, range(6)).normal((4, V)).double()


@pytest.mark.parametrize("divergence", ALL, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_student_that_agrees_has_nothing_to_learn(
    divergence: Divergence, temperature: float
) -> None:
    teacher = logits(0)
    student = teacher.clone().requires_grad_()
    found = tempered(divergence, student, teacher, temperature)
    assert found.shape == (6, 4)
    assert found.abs().max() < 1e-12
    found.sum().backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12
    apart = tempered(divergence, logits(1), teacher, temperature)
    assert (apart > 1e-3).all()


@pytest.mark.parametrize("divergence", ALL, ids=str)
def test_only_the_student_learns_and_it_learns_to_agree(divergence: Divergence) -> None:
    teacher, student = logits(0).requires_grad_(), logits(1).requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.1)
    before = tempered(divergence, student, teacher).detach()
    for _ in range(200):
        optimizer.zero_grad()
        tempered(divergence, student, teacher).sum().backward()
        optimizer.step()
    assert teacher.grad is None
    assert (tempered(divergence, student, teacher) < 0.05 * before).all()


@pytest.mark.parametrize("divergence", ALL[:-1], ids=str)
def test_a_constant_in_the_logits_means_nothing(divergence: Divergence) -> None:
    student, teacher = logits(1), logits(0)
    moved = tempered(divergence, student + 7, teacher - 11)
    torch.testing.assert_close(moved, tempered(divergence, student, teacher))


def test_the_ends_are_the_plain_divergences() -> None:
    student, teacher = logits(1), logits(0)
    forward, reverse = Forward()(student, teacher), Reverse()(student, teacher)
    same = torch.testing.assert_close
    same(TopKLD(k=V)(student, teacher), reverse)  # what is added to the summands cancels
    same(TopKLD(k=7, explicit="forward")(student, teacher), forward)
    same(TopKLD(k=7, implicit="reverse")(student, teacher), reverse)
    same(CAKLD(beta=0.0)(student, teacher), forward)
    same(CAKLD(beta=1.0)(student, teacher), reverse)
    same(KLTop(k=V)(student, teacher), forward)
    same(TopKBucket(k=V - 1)(student, teacher), forward)


def test_merging_tokens_loses_divergence() -> None:
    """The data processing inequality, for fewer and fewer tokens apart."""
    student, teacher = logits(1), logits(0)
    found = [TopKBucket(k=k)(student, teacher) for k in range(1, V)]
    assert all((a <= b + 1e-12).all() for a, b in itertools.pairwise(found))
    assert (found[-1] <= Forward()(student, teacher) + 1e-12).all()


def test_small_probabilities_and_low_precision_stay_finite() -> None:
    teacher, student = logits(0, 60.0), logits(1, 60.0)
    for divergence in ALL:
        for dtype in (torch.float32, torch.bfloat16):
            given = student.to(dtype).requires_grad_()
            found = tempered(divergence, given, teacher.to(dtype))
            assert found.dtype == torch.float32
            found.sum().backward()
            assert found.isfinite().all()
            assert given.grad is not None
            assert given.grad.isfinite().all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "topkld"}, "k: missing"),
        ({"name": "topkld", "k": 0}, "k must be at least 1, got 0"),
        ({"name": "topkld", "k": 3, "implicit_weight": -1.0}, "must be at least 0"),
        ({"name": "topkld", "k": 3, "explicit": "both"}, "explicit: should be 'forward' or"),
        ({"name": "cakld", "beta": 1.5}, r"beta must be in \[0, 1\]"),
        ({"name": "topkd", "k": 3}, "did you mean 'topkld'"),
    ],
)
def test_refusals(data: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DIVERGENCES.build(data)


def test_more_tokens_than_there_are() -> None:
    for divergence in (TopKLD(k=V + 1), KLTop(k=V + 1)):
        with pytest.raises(ValueError, match="at most the 24 tokens there are, got 25"):
            divergence(logits(1), logits(0))
    with pytest.raises(ValueError, match="k must leave a token of 24 out, got 24"):
        TopKBucket(k=V)(logits(1), logits(0))
