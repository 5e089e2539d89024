"""Frechet distance and streaming statistics, on moments and on features in any split."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from golden_case import Case
from torch import Tensor

from genvis.evaluation.frechet import (
    frechet_distance,
    frechet_from_features,
    frechet_from_moments,
    trace_sqrt,
)
from genvis.evaluation.statistics import Statistics

RELATIVE = 1e-9  # of max(1, Tr sigma1 + Tr sigma2), where a case has no tolerance of its own


def check(case: Case) -> None:
    inputs = case.tensors("in/")
    for name in {full.partition(".")[0]: None for full in inputs}:  # in order, once each
        given = {full.partition(".")[2]: v for full, v in inputs.items() if _of(full, name)}
        if "feats" in given:
            _check_statistics(case, name, given["feats"])
        elif {"mu1", "sigma1", "mu2", "sigma2"} <= given.keys():
            _check_pair(case, name, given)
        else:
            case.unclaimed(f"{name} with inputs {', '.join(sorted(given))}")


def _check_pair(case: Case, name: str, given: dict[str, Tensor]) -> None:
    moments = (given["mu1"], given["sigma1"], given["mu2"], given["sigma2"])
    atol = case.spec.get("cases", {}).get(name, {}).get("atol")
    if atol is None:
        traces = float(given["sigma1"].trace() + given["sigma2"].trace())
        atol = RELATIVE * max(1.0, traces)
    tolerance = (float(atol), 0.0)
    root = trace_sqrt(given["sigma1"], given["sigma2"])
    case.compare(f"{name}.tr_sqrt", root[None], tolerance=tolerance)
    distances = [frechet_from_moments(*moments), frechet_from_moments(*moments[2:], *moments[:2])]
    if "feats1" in given:
        a, b = given["feats1"], given["feats2"]
        distances.append(frechet_from_features(a, b))
        for left, right in zip(splits(a), splits(b), strict=True):
            distances.append(frechet_distance(left, right))
    for distance in distances:
        case.compare(
            f"{name}.fd", torch.tensor([distance], dtype=torch.float64), tolerance=tolerance
        )


def _check_statistics(case: Case, name: str, features: Tensor) -> None:
    rtol = float(case.spec.get("cases", {}).get(name, {}).get("rtol", RELATIVE))
    for found in splits(features):
        case.compare(f"{name}.mean", found.mean, tolerance=(0.0, rtol))
        case.compare(f"{name}.cov", found.covariance, tolerance=(0.0, rtol))


def splits(features: Tensor) -> Iterator[Statistics]:
    """The statistics of the rows at once, one by one, in uneven batches, and as a tree."""
    yield Statistics.of(features)
    yield _total([Statistics.of(row[None]) for row in features])
    n = len(features)
    cuts = sorted([0, 1, n // 3, n // 3, n - 1, n])  # batches of one, of many, and an empty one
    yield _total([Statistics.of(features[i:j]) for i, j in pairwise(cuts)])
    parts = [Statistics.of(rows) for rows in features.split(3)]
    while len(parts) > 1:
        parts = [_total(parts[i : i + 2]) for i in range(0, len(parts), 2)]
    yield parts[0]


def _total(parts: list[Statistics]) -> Statistics:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _of(full: str, name: str) -> bool:
    return full.partition(".")[0] == name
