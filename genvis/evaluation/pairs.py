"""What every comparison of two sets of features asks of them.

Letters: N1, N2 rows, D features.
"""

from torch import Tensor

from genvis.evaluation.statistics import check_features


def check_pair(a: Tensor, b: Tensor, least: int, chunk: int, why: str) -> tuple[Tensor, Tensor]:
    """a (N1, D) and b (N2, D) in float64. ValueError for NaN, unequal D, another device, or fewer
    than `least` rows, which is said with the reason `why`.
    """
    for features in (a, b):
        check_features(features)
        if len(features) < least:
            raise ValueError(f"{why} needs at least {least} rows in each set, got {len(features)}")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[1]} and {b.shape[1]} features cannot be compared")
    if a.device != b.device:
        raise ValueError(f"both sets must be on one device, got {a.device} and {b.device}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 row, got {chunk}")
    return a.double(), b.double()
