"""The ranges of least weighted squared error, block by block.

Letters: as in `genvis.quant.blocks`.
"""

import torch
from torch import Tensor

from genvis.quant.format import Format

# which end is pulled in: both alike, then each on its own
ENDS = ((True, True), (False, True), (True, False))


def least_error(
    format: Format, blocks: Tensor, weight: Tensor, low: Tensor, high: Tensor, *, steps: int
) -> tuple[Tensor, Tensor]:
    """Ranges (R, K) inside [low, high] for blocks (R, K, G) of numbers that count `weight` times.

    Tries `steps` fractions i / steps of the ends; never worse than [low, high]. `weight`
    broadcasts to the blocks.
    """

    def error(low: Tensor, high: Tensor) -> Tensor:
        params = format.fit(low, high)
        step = format.step(params)[..., None]
        x_hat = format.value(format.round(format.in_steps(blocks, step), params), params) * step
        return ((x_hat - blocks).double().square() * weight).sum(-1)

    least = error(low, high)
    for pull_low, pull_high in ENDS:
        start, end = low, high
        for i in range(1, steps):
            share = i / steps
            a, b = (start * share if pull_low else start), (end * share if pull_high else end)
            found = error(a, b)
            better = found < least
            low, high = torch.where(better, a, low), torch.where(better, b, high)
            least = torch.minimum(found, least)
    return low, high
