"""Which numbers share a scale.

Numbers come as rows: those of a weight are its output channels, those of an activation its tokens.

Letters: R rows, I numbers in one (axes after the first flattened, in order), K blocks of a row,
G numbers in a block.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from einops import rearrange
from pydantic import PlainValidator
from torch import Tensor


def _checked(group: Any) -> Any:
    if group is None or group == "tensor" or (type(group) is int and group >= 1):
        return group
    raise ValueError(f"must be a number of at least 1, null or tensor, got {group!r}")


# None: a whole row shares a scale; a number: as many neighbours in a row; "tensor": everything
Group = Annotated[int | Literal["tensor"] | None, PlainValidator(_checked)]


def count(shape: Sequence[int], group: Group) -> tuple[int, int]:
    """(R, K) of the scales of numbers (R, ...) of `shape`; (1, 1) if everything shares one."""
    if len(shape) < 2 or not math.prod(shape[1:]):
        raise ValueError(
            f"expected numbers (rows, inputs, ...), none of them 0, got {tuple(shape)}"
        )
    inputs = math.prod(shape[1:])
    if group == "tensor":
        return 1, 1
    if group is not None and inputs % group:
        raise ValueError(f"group must divide the inputs of a row, got {group} for {inputs}")
    return shape[0], inputs // (group or inputs)


def split(x: Tensor, group: Group) -> Tensor:
    """(R, ...) to blocks (R, K, G), or (1, 1, R I) if everything shares a scale."""
    rows, blocks = count(x.shape, group)
    if group == "tensor":
        return x.reshape(1, 1, -1)
    return rearrange(x.flatten(1), "r (k g) -> r k g", r=rows, k=blocks)


def ranges(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest number (R, K) of each block (R, K, G), widened to contain 0."""
    return blocks.amin(-1).clamp_max(0), blocks.amax(-1).clamp_min(0)
