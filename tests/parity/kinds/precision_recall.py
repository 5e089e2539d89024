"""Metrics on features and logits: Inception Score, KID, precision and recall, CMMD.

Sizes, splits and neighbours are in the outputs' names, or in the sentence the JSON has for each.
"""

import re
from collections.abc import Callable

import numpy as np
import torch
from golden_case import Case
from torch import Tensor

from genvis.evaluation import inception_score
from genvis.evaluation.cmmd import SCALE, cmmd, gaussian_mmd2
from genvis.evaluation.inception_score import InceptionScore
from genvis.evaluation.kid import SubsetKid, kid, kid_of_rows
from genvis.evaluation.manifold import manifold

CHUNKS = (1024, 7)  # a value may not depend on it

Check = Callable[[Case, str, dict[str, Tensor], re.Match[str]], None]


def check(case: Case) -> None:
    given = case.tensors("in/")
    for name in case.expected:
        fitting = [(c, m) for p, c in OUTPUTS.items() if (m := re.fullmatch(p, name))]
        if not fitting:
            case.unclaimed(f"output {name!r}")
        fitting[0][0](case, name, given, fitting[0][1])


def _blocks(case: Case, name: str, given: dict[str, Tensor], _: re.Match[str]) -> None:
    size = _number(case, name, r"split_size=(\d+)", r"blocks of (\d+)")
    _compare_spread(case, name, inception_score.blocks(given["logits"], size), (0, 1e-6))


def _splits(case: Case, name: str, given: dict[str, Tensor], match: re.Match[str]) -> None:
    count, how, seed = int(match[1]), match[2], match[3]
    if how is None:
        if count != 1:
            case.unclaimed(f"{name}: shuffled or not?")
        case.compare(name, _one(inception_score.whole(given["logits"])), tolerance=(0, 1e-6))
        return
    orders: list[Tensor | None] = [None]
    if seed is not None:  # the recorded order, and ours
        ours = inception_score.legacy_order(len(given["logits"]), int(seed))
        orders = [given.get(f"perm{seed}", ours), ours]
    for order in orders:
        found = inception_score.splits(given["logits"], count, order)
        _compare_spread(case, name, found, (0, 1e-6))


def _kid(case: Case, name: str, given: dict[str, Tensor], match: re.Match[str]) -> None:
    real, fake = given["real"], given["fake"]
    if match[1] == "equal":
        least = min(len(real), len(fake))
        rows = _number(case, name, r"first (\d+)", default=least)
        real, fake = real[:rows], fake[:rows]
    for chunk in CHUNKS:
        case.compare(name, _one(kid(fake, real, chunk)), tolerance=(1e-9, 0))


def _kid_subsets(case: Case, name: str, given: dict[str, Tensor], _: re.Match[str]) -> None:
    rows = given["kid_idx_fake"], given["kid_idx_real"]
    found = kid_of_rows(given["fake"], given["real"], *rows)
    _compare_spread(case, name, found, (1e-5, 0))  # recorded in float32


def _neighbours(case: Case, name: str, given: dict[str, Tensor], match: re.Match[str]) -> None:
    for inclusive in (True, False):  # the case has no ties
        _compare_manifold(case, name, given["real"], given["fake"], int(match[1]), inclusive)


def _ties(case: Case, name: str, given: dict[str, Tensor], match: re.Match[str]) -> None:
    name_of = {"le": True, "lt": False}
    k = _number(case, name, r"\bk=(\d+)", default=1)
    sets = given["tie_real"], given["tie_fake"]
    _compare_manifold(case, name, *sets, k, name_of[match[1]])


def _cmmd(case: Case, name: str, given: dict[str, Tensor], _: re.Match[str]) -> None:
    """Recorded with rows divided by their lengths in float32, which the tight check repeats."""
    sigma = float(_number(case, name, r"sigma=(\d+)", default=10))
    unit = [torch.from_numpy(_float32_directions(given[side].numpy())) for side in ("real", "fake")]
    for chunk in CHUNKS:
        found = SCALE * gaussian_mmd2(unit[0], unit[1], sigma=sigma, chunk=chunk)
        case.compare(name, _one(found), tolerance=(0, 1e-8))
        found = cmmd(given["real"], given["fake"], sigma=sigma, chunk=chunk)
        case.compare(name, _one(found), tolerance=(1e-6, 0))


def _float32_directions(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _compare_manifold(
    case: Case, name: str, real: Tensor, fake: Tensor, k: int, inclusive: bool
) -> None:
    for chunk in CHUNKS:
        found = manifold(real, fake, k=k, inclusive=inclusive, chunk=chunk)
        four = [found.precision, found.recall, found.density, found.coverage]
        case.compare(name, torch.tensor(four, dtype=torch.float64), tolerance=(1e-9, 0))


def _compare_spread(
    case: Case, name: str, found: InceptionScore | SubsetKid, tolerance: tuple[float, float]
) -> None:
    pair = torch.tensor([found.mean, found.sd], dtype=torch.float64)
    case.compare(name, pair, tolerance=tolerance)


def _one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def _number(case: Case, name: str, *patterns: str, default: int | None = None) -> int:
    """What the JSON's sentence about an output says; a case that leaves it open is not claimed."""
    text = case.spec.get("outputs", {}).get(name, "")
    for pattern in patterns:
        if found := re.search(pattern, text):
            return int(found[1])
    if default is None:
        case.unclaimed(f"{name}: its sentence does not say {' or '.join(patterns)}")
        raise AssertionError  # unclaimed ends the test
    return default


OUTPUTS: dict[str, Check] = {
    r"is_blocks": _blocks,
    r"is_(\d+)(?:_(noshuffle|shuffle(\d+)))?": _splits,
    r"kid_(equal|unequal)": _kid,
    r"kid_subsets": _kid_subsets,
    r"prdc_k(\d+)": _neighbours,
    r"tie_(le|lt)": _ties,
    r"cmmd": _cmmd,
}
