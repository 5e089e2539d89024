"""How far a student's distribution of a token is from its teacher's, from the logits of both.

    forward      sum p log(p / q)                          covers all that the teacher may say
    reverse      sum q log(q / p)                          seeks what the teacher would say
    cakld        b reverse + (1 - b) forward
    topkld       w_K sum over K of r + w sum over the rest of f, where
                 f = p log(p / q) - p + q  and  r = q log(q / p) - q + p
    kl_top       forward, of p and q renormalised on K
    topk_bucket  forward, with all tokens outside K taken as one
    squared      mean (s - s')^2 of the logits s themselves

TopKLD was published as a balance of the teacher's explicit knowledge (its k likeliest tokens) and
implicit knowledge (the rest); its formula could not be read, and this one is our reading. The terms
-p + q make every summand of f and r non-negative, zero where p = q, and cancel over a vocabulary.
What kl_top stands for is our reading of OstQuant's KL-Top as well.

Sources: Hinton et al. 2015, "Distilling the knowledge in a neural network" (temperature);
Du et al. 2024, "BitDistiller" (CAKLD); Ding et al. 2025, "Dissecting bit-level scaling laws in
quantizing vision generative models" (TopKLD); Hu et al. 2025, "OstQuant" (KL-Top).
Letters: p teacher, q student, V tokens, K the k largest teacher logits.
"""

from typing import Literal, Protocol

import torch
from torch import Tensor

from genvis.config import config

Direction = Literal["forward", "reverse"]


class Divergence(Protocol):
    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(...) from logits (..., V) of both; at least 0, and 0 where they agree."""
        ...


def tempered(
    divergence: Divergence, student: Tensor, teacher: Tensor, temperature: float = 1.0
) -> Tensor:
    """T^2 times the divergence of logits / T, in float32 or better; no gradient to the teacher."""
    s, t = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (student, teacher.detach()))
    return temperature**2 * divergence(s / temperature, t / temperature)


@config
class Forward:
    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        return _forward(student.log_softmax(-1), teacher.log_softmax(-1)).sum(-1)


@config
class Reverse:
    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        return _reverse(student.log_softmax(-1), teacher.log_softmax(-1)).sum(-1)


@config
class CAKLD:
    """beta: how sure the teacher is, the mean probability it gives to the right token."""

    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta must be in [0, 1], got {self.beta}")

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
        mixed = self.beta * _reverse(log_q, log_p) + (1 - self.beta) * _forward(log_q, log_p)
        return mixed.sum(-1)


@config
class TopKLD:
    k: int  # as many tokens as sampling chooses from
    explicit: Direction = "reverse"  # on the top k
    implicit: Direction = "forward"  # on the rest
    explicit_weight: float = 1.0
    implicit_weight: float = 1.0

    def __post_init__(self) -> None:
        _check(self.k)
        if min(self.explicit_weight, self.implicit_weight) < 0:
            raise ValueError("explicit_weight and implicit_weight must be at least 0")

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
        q, p = log_q.exp(), log_p.exp()
        parts = {
            "forward": _forward(log_q, log_p) - p + q,
            "reverse": _reverse(log_q, log_p) - q + p,
        }
        top = torch.zeros_like(p, dtype=torch.bool).scatter(-1, _top(teacher, self.k), True)
        inside, outside = parts[self.explicit], parts[self.implicit]
        weighted = torch.where(top, self.explicit_weight * inside, self.implicit_weight * outside)
        return weighted.sum(-1)


@config
class KLTop:
    k: int

    def __post_init__(self) -> None:
        _check(self.k)

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        top = _top(teacher, self.k)
        return Forward()(student.gather(-1, top), teacher.gather(-1, top))


@config
class TopKBucket:
    k: int  # fewer than there are tokens

    def __post_init__(self) -> None:
        _check(self.k)

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        top = _top(teacher, self.k)
        if top.shape[-1] == teacher.shape[-1]:
            raise ValueError(f"k must leave a token of {teacher.shape[-1]} out, got {self.k}")

        def bucketed(logits: Tensor) -> Tensor:  # (..., k + 1)
            rest = logits.scatter(-1, top, -torch.inf).logsumexp(-1, keepdim=True)
            return torch.cat([logits.gather(-1, top), rest], -1)

        return Forward()(bucketed(student), bucketed(teacher))


@config
class Squared:
    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square().mean(-1)


def _forward(log_q: Tensor, log_p: Tensor) -> Tensor:
    return log_p.exp() * (log_p - log_q)


def _reverse(log_q: Tensor, log_p: Tensor) -> Tensor:
    return log_q.exp() * (log_q - log_p)


def _top(teacher: Tensor, k: int) -> Tensor:
    """Where the k largest logits are, (..., k)."""
    if k > teacher.shape[-1]:
        raise ValueError(f"k must be at most the {teacher.shape[-1]} tokens there are, got {k}")
    return teacher.topk(k, -1).indices


def _check(k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
