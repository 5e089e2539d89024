"""Did the search please its verifier alone? Scores of the same images before and after, paired.

The rule: the score searched for rose and the judge's fell, both by more than chance. The largest
budget is compared with plain sampling and with each smaller budget; the intervals of all these
differences hold together at 95 % (Bonferroni), so that of searches that change nothing for the
judge at most one in twenty is warned of.
Source of the danger: Ma et al. 2025, "Inference-time Scaling for Diffusion Models beyond Scaling
Denoising Steps", section 3 ("verifier hacking"); of the intervals: Student 1908.
Letters: N images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from scipy.stats import t as student

Scores = Mapping[str, Any]


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """(low, mean, high) for the mean of N values by Student's t; without a width if N is 1."""
    x, n = torch.tensor(values, dtype=torch.float64), len(values)
    mean = float(x.mean())
    if n < 2:
        return mean, mean, mean
    half = float(student.ppf((1 + level) / 2, n - 1)) * float(x.std()) / n**0.5
    return mean - half, mean, mean + half


def hacking(plain: Scores, rows: Sequence[Scores]) -> str | None:
    """One line if the rule holds, for where the judge's score fell most; else None.

    plain: scores of the same images without search; rows: of `search.json`, by rising budget. Each
    has a list of N numbers under "verifier" and "judge".
    """
    *smaller, last = rows
    before = {"plain sampling": plain, **{f"budget {row['budget']}": row for row in smaller}}
    level, worse = 1 - 0.05 / len(before), []
    for name, row in before.items():
        gain, loss = (_difference(last[key], row[key], level) for key in ("verifier", "judge"))
        if gain[0] > 0 > loss[2]:
            worse.append((loss, gain, name))
    if not worse:
        return None
    loss, gain, name = min(worse, key=lambda found: found[0][1])
    return (
        f"verifier hacking: from {name} to budget {last['budget']} the verifier's score changed by "
        f"{_text(gain)}, the held-out judge's by {_text(loss)}"
    )


def _difference(
    after: Sequence[float], before: Sequence[float], level: float
) -> tuple[float, float, float]:
    if len(after) < 2:
        return 0.0, 0.0, 0.0  # one image says nothing
    return interval([a - b for a, b in zip(after, before, strict=True)], level)


def _text(span: tuple[float, float, float]) -> str:
    low, mean, high = span
    return f"{mean:+.3g} [{low:+.3g}, {high:+.3g}]"
