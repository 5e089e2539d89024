"""A branch of low rank in full precision takes what is hard to round: W = L + (W - L).

One round is the truncated singular value decomposition of W. Each further one fits L to what the
rounded rest leaves, L = SVD_r(W - Q(W - L)), and the best of all rounds stays.

Sources: Li et al. 2024, "SVDQuant" (one round, after `smooth`); Guo et al. 2023, "LQ-LoRA"
(more).
Letters: as in `genvis.quant.transform`; r is `rank`, Q the weight's format.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from genvis.config import config
from genvis.quant.modules import Around
from genvis.quant.transform import AXES, Layer, Rest, Seen, ungrouped, with_weight


class Beside(Around):
    """`layer` plus a branch that goes `down` to r channels and `up` (O, r) from there."""

    def __init__(self, layer: nn.Module, down: Layer, up: Tensor) -> None:
        super().__init__(layer)
        self.down, self.axis = down, AXES[type(down)]
        self.up = nn.Parameter(up.contiguous(), down.weight.requires_grad)

    @property
    def weight(self) -> Tensor:
        return self.layer.weight + torch.einsum("or,r...->o...", self.up, self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        low = self.down(x).movedim(self.axis, -1)
        return self.layer(x) + nn.functional.linear(low, self.up).movedim(-1, self.axis)


@config
class LowRank:
    rank: int = 32
    rounds: int = 1
    needs_data: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if min(self.rank, self.rounds) < 1:
            raise ValueError(
                f"rank and rounds must be at least 1, got {self.rank} and {self.rounds}"
            )

    def apply(self, layer: Layer, rest: Rest, seen: Seen | None) -> nn.Module:
        ungrouped(layer, "low_rank")
        weight = layer.weight.detach().double()
        if self.rank > min(matrix := weight.flatten(1).shape):
            raise ValueError(f"rank must be at most {min(matrix)} here, got {self.rank}")
        if self.rounds > 1 and rest.weight is None:
            raise ValueError("more than one round needs a weight's format, not null")
        up, down = (part.to(layer.weight.dtype) for part in self._find(weight, rest))
        branch = with_weight(layer, down.reshape(self.rank, *weight.shape[1:]), None)
        left = weight - (up.double() @ down.double()).reshape(weight.shape)
        return Beside(rest.make(with_weight(layer, left, layer.bias), seen), branch, up)

    def _find(self, weight: Tensor, rest: Rest) -> tuple[Tensor, Tensor]:
        """(O, r) and (r, I ...) whose product is L."""
        best = factors(weight.flatten(1), self.rank)
        if rest.weight is None:
            return best
        found, least = best, float("inf")
        for _ in range(self.rounds):
            left = weight - (found[0] @ found[1]).reshape(weight.shape)
            wrong = left - rest.weight.fake(left)
            if float(wrong.square().sum()) >= least:
                break
            best, least = found, float(wrong.square().sum())
            found = factors((weight - rest.weight.fake(left)).flatten(1), self.rank)
        return best


def factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(O, r) and (r, I) of the nearest matrix of rank r, with the singular values shared evenly."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]
