"""What a language model that sees says of an image: how likely its answer is "yes".

Source: Lin et al. 2024, "Evaluating Text-to-Visual Generation with Image-to-Text Generation"
(VQAScore); Wu et al. 2025, "RewardDance", eq. 2 (the probability of one token).
Letters: B images, L tokens of the answer, V size of the vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Mode = Literal["full_softmax", "yes_vs_no", "logodds", "answer_nll"]
IGNORED = -100  # labels that are padding


def token_reward(
    logits: Tensor,
    mode: Mode,
    *,
    yes: Sequence[int] = (),
    no: Sequence[int] = (),
    labels: Tensor | None = None,
) -> Tensor:
    """Rewards (B,) float32 from logits (B, L, V) at the tokens of the answer.

    full_softmax: the share of the tokens `yes` in the first position; yes_vs_no: among `yes` and
    `no` alone; logodds: log of yes to no, which never saturates and so goes into exp(lam r);
    answer_nll: exp of the mean log-probability of the tokens in labels (B, L), a geometric mean,
    where -100 is not read. VQAScore is that of "Yes" and the end of the sequence.

    ValueError for another mode, or without the tokens that it reads.
    """
    modes: dict[Mode, Callable[[], Tensor]] = {
        "full_softmax": lambda: (_sum(first, yes) - first.logsumexp(1)).exp(),
        "yes_vs_no": lambda: (_sum(first, yes) - _sum(first, no)).sigmoid(),
        "logodds": lambda: _sum(first, yes) - _sum(first, no),
        "answer_nll": lambda: _answer(logits, labels),
    }
    check_mode(mode, yes, no)
    first = logits[:, 0].float()
    return modes[mode]()


def check_mode(mode: str, yes: Sequence[object], no: Sequence[object]) -> None:
    """ValueError for an unknown mode, or one whose tokens are missing."""
    known = Mode.__args__  # type: ignore[attr-defined]
    if mode not in known:
        raise ValueError(f"mode must be one of {', '.join(known)}, got {mode!r}")
    if mode != "answer_nll" and not yes:
        raise ValueError(f"mode {mode} needs the tokens of yes")
    if mode in ("yes_vs_no", "logodds") and not no:
        raise ValueError(f"mode {mode} needs the tokens of no")


def _sum(first: Tensor, tokens: Sequence[int]) -> Tensor:
    """log of the summed exp of some logits, (B,)."""
    return first[:, list(tokens)].logsumexp(1)


def _answer(logits: Tensor, labels: Tensor | None) -> Tensor:
    if labels is None or labels.shape != logits.shape[:2]:
        given = None if labels is None else tuple(labels.shape)
        raise ValueError(f"labels must be (B, L) = {tuple(logits.shape[:2])}, got {given}")
    read = labels != IGNORED
    if not read.any(1).all():
        raise ValueError(f"every row of labels must hold a token other than {IGNORED}")
    log_p = logits.float().log_softmax(2)
    each = log_p.gather(2, labels.long().clamp(min=0)[..., None])[..., 0]  # (B, L)
    return (torch.where(read, each, 0).sum(1) / read.sum(1)).exp()
