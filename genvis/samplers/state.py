"""Where a sampling trajectory stands."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from genvis.random import HashKeys
from genvis.types import Cond, Estimate


@dataclass(frozen=True)
class DiffusionState:
    """x (B, ...) at times[k], float32. Rows share the clock k.

    kept: the estimate at (x, k), if `look` made one; memory: what a multistep solver carries on.
    """

    x: Tensor
    k: int
    cond: Cond
    keys: HashKeys
    kept: Estimate | None = None
    memory: Any = None
