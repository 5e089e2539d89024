"""Whether images of `shapes` show what their prompts ask for: accuracy by kind of prompt, of
compositions that training had and of those held out from it.

Source: Ghosh et al. 2023, "GenEval": the overall score is the mean of the categories'. Intervals
are 95 %, of Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference";
those of a mean of categories by the normal law.
Letters: N images, p a share.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from genvis.config import config
from genvis.data.checker import detect
from genvis.data.scenes import TYPES, Rule
from genvis.data.specs import parse
from genvis.evaluation.observe import Observer, Seen
from genvis.evaluation.records import Record, stamped
from genvis.evaluation.reference import Reference
from genvis.types import Cond

VERDICTS, KINDS = "shapes/verdicts", "shapes/kinds"  # names of rows
RULES: tuple[Rule, ...] = ("pair", "count", "relation")
NAME, Z = "accuracy[shapes-checker]", 1.959964


@dataclass(frozen=True)
class Check:
    """Of every image the strict, lenient and soft verdict, (B, 3), and what its prompt is of,
    (B, 4): a number in `TYPES`, and whether each of `RULES` holds it out.
    """

    @property
    def identity(self) -> dict[str, Any]:
        return {"checker": "shapes"}

    def check(self, prompts: Sequence[str] | None) -> None:
        """ValueError for a prompt that is no caption of `shapes`, and for none."""
        if prompts is None:
            raise ValueError("shapes_accuracy needs images with prompts")
        for prompt in dict.fromkeys(prompts):
            parse(prompt)

    def __call__(self, pixels: Tensor, cond: Cond, rows: range) -> Mapping[str, Tensor]:
        self.check(cond.prompts)
        specs = [parse(prompt) for prompt in cond.prompts or ()]
        images = rearrange(pixels[: len(rows)], "b c h w -> b h w c").cpu().numpy()
        found = [detect(image) for image in images]
        verdicts = [
            [float(each.strict(spec)), float(each.lenient(spec)), each.soft(spec)]
            for each, spec in zip(found, specs, strict=True)
        ]
        kinds = [
            [TYPES.index(spec.type), *(rule in spec.held_out for rule in RULES)] for spec in specs
        ]
        return {VERDICTS: torch.tensor(verdicts).double(), KINDS: torch.tensor(kinds).long()}


@config
class ShapesAccuracy:
    """Strict verdicts; the lenient ones and the soft score beside them."""

    observers: ClassVar[tuple[Observer, ...]] = (Check(),)

    def check(self, heads: AbstractSet[str], reference: Reference | None, n: int) -> None:
        """It asks nothing of an extractor or a reference."""

    def __call__(self, seen: Seen, reference: Reference | None) -> list[Record]:
        return accuracies(seen.rows(VERDICTS), seen.rows(KINDS))


def accuracies(verdicts: Tensor, kinds: Tensor) -> list[Record]:
    """Of what `Check` found: every category, of all, those seen and those held out; and by rule."""
    rules = kinds[:, 1:].bool()
    held = rules.any(1)
    groups = {"": held | ~held}
    if held.any():
        groups |= {" seen": ~held, " held-out": held}
    found = []
    for group, rows in groups.items():
        each = list(_each(group, verdicts, kinds[:, 0], rows))
        found += [*each, _overall(group, each)] if each else []
    by_rule = (_record(f"held out by {r}", verdicts[rules[:, k]]) for k, r in enumerate(RULES))
    return [*found, *(record for record in by_rule if record is not None)]


def _each(group: str, verdicts: Tensor, types: Tensor, rows: Tensor) -> Iterator[Record]:
    """Of every category that these rows have."""
    for k, type in enumerate(TYPES):
        record = _record(type + group, verdicts[rows & (types == k)])
        if record is not None:
            yield record


def _record(what: str, verdicts: Tensor) -> Record | None:
    """The share of strict verdicts (N, 3) that say yes; None for no images."""
    n = len(verdicts)
    if not n:
        return None
    strict, lenient, soft = verdicts.mean(0).tolist()
    return stamped(
        metric=f"{NAME} {what}",
        value=strict,
        n=n,
        error=math.sqrt(strict * (1 - strict) / n),
        interval=wilson(strict, n),
        beside={"lenient": lenient, "soft": soft},
    )


def _overall(group: str, each: Sequence[Record]) -> Record:
    """The mean of the categories, each counting the same."""
    value = fmean(record.value for record in each)
    error = math.sqrt(sum((record.error or 0) ** 2 for record in each)) / len(each)
    low, high = max(0.0, value - Z * error), min(1.0, value + Z * error)
    return stamped(
        metric=f"{NAME} overall{group}",
        value=value,
        n=sum(record.n for record in each),
        error=error,
        interval=(low, high),
        beside={name: fmean(record.beside[name] for record in each) for name in each[0].beside},
    )


def wilson(p: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share p of n."""
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)
