"""Where a sampling trajectory stands."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from genvis.random import Keys
from genvis.types import Cond, Estimate


@dataclass(frozen=True)
class DiffusionState:
    """x (B, ...), float32, at time t (a scalar on the CPU). Rows share the clock k.

    t is the grid's k-th time, or above it where the solver raised the noise. kept: the estimate at
    (x, t), if `look` made one; memory: what a multistep solver carries on.
    """

    x: Tensor
    t: Tensor
    k: int
    cond: Cond
    keys: Keys
    kept: Estimate | None = None
    memory: Any = None
