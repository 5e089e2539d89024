"""A learned rotation and scaling of the inputs, in blocks.

    y = (W M^-1) (M x),  M = diag(e^v) H (1 + K)^-1 (1 - K),  K = A - A^T,  for a block of inputs

starts at the Hadamard rotation (A = 0, v = 0) and descends on |y_hat - y|^2 over what the layer was
called with, rounding straight through. Cayley's transform of K is orthogonal whatever A is, which
keeps the rotation on the Stiefel manifold.

Source: Hu et al. 2025, "OstQuant: Refining Large Language Model Quantization with Orthogonal and
Scaling Transformations"; the loss is the layer's own output instead of the logits', and
the map stays in front of the layer.
Letters: as in `genvis.quant.transform`; G inputs in a block, K blocks; a group convolution's
channels are cut into blocks group by group.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from genvis.config import config
from genvis.quant.modules import Around
from genvis.quant.rotation import block_size, hadamard
from genvis.quant.transform import (
    AXES,
    Layer,
    Rest,
    Seen,
    faked,
    groups,
    inputs,
    through,
    with_weight,
)


class Mapped(Around):
    """`layer` on inputs (..., I) whose blocks are multiplied by `map` (K, G, G), x' = x M^T."""

    map: Tensor

    def __init__(self, layer: nn.Module, map: Tensor, like: Layer) -> None:
        super().__init__(layer)
        self.axis, self.groups = AXES[type(like)], groups(like)
        self.keep("map", map)

    @property
    def weight(self) -> Tensor:
        weight = self.layer.weight
        return _on_weight(weight.double(), self.map.double(), self.groups).to(weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        rows = _on_tokens(x.movedim(self.axis, -1), self.map)
        return self.layer(rows.movedim(-1, self.axis))


@config
class OstQuant:
    block: int = 64  # G at most; it is the largest power of two that divides the inputs
    steps: int = 100
    lr: float = 1e-2  # of Adam, for A and v

    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.block < 2 or self.block & (self.block - 1):
            raise ValueError(f"block must be a power of two of at least 2, got {self.block}")
        if self.steps < 1 or self.lr <= 0:
            raise ValueError(
                f"steps must be at least 1 and lr positive, got {self.steps} and {self.lr}"
            )

    def apply(self, layer: Layer, rest: Rest, seen: Seen | None) -> nn.Module:
        size = min(self.block, block_size(layer.weight.shape[1]))
        blocks = inputs(layer) // size
        learns = seen is not None and (rest.weight is not None or rest.act is not None)
        start = _start(size, blocks, layer.weight.device)
        found = self._learn(layer, rest, seen, start) if learns and seen else start
        # of the numbers that are stored, so that the function stays the same to the last digits
        back = torch.linalg.inv(found.double())
        weight = _on_weight(layer.weight.detach().double(), back, groups(layer))
        inner = with_weight(layer, weight, layer.bias)
        moved = through(lambda x: _on_tokens(x, found), layer, seen)
        return Mapped(rest.make(inner, moved), found, layer)

    def _learn(self, layer: Layer, rest: Rest, seen: Seen, start: Tensor) -> Tensor:
        """The map (K, G, G) of least error among those on the way."""
        a = torch.zeros_like(start, requires_grad=True)
        v = torch.zeros(start.shape[:2], device=start.device, requires_grad=True)
        adam = torch.optim.Adam([a, v], self.lr)
        with torch.no_grad():
            wanted = [layer(x).float() for x in seen]
        best, least, one = start, float("inf"), torch.eye(start.shape[-1]).to(start)
        with torch.enable_grad():
            for _ in range(self.steps):
                # the inverse is the transpose: orthogonal, up to the scaling
                turn = start @ torch.linalg.solve(one + (a - a.mT), one - (a - a.mT))
                map, back = v.exp()[..., None] * turn, turn.mT * (-v).exp()[:, None]
                error = self._error(layer, rest, seen, wanted, map, back)
                if error.item() < least:
                    best, least = map.detach(), error.item()
                adam.zero_grad()
                error.backward()
                adam.step()
        return best.contiguous()

    def _error(
        self, layer: Layer, rest: Rest, seen: Seen, wanted: Seen, map: Tensor, back: Tensor
    ) -> Tensor:
        axis, bias = AXES[type(layer)], layer.bias
        weight = _on_weight(layer.weight.detach().float(), back, groups(layer))
        act = None if rest.act is None else rest.act.format
        w_hat = faked(rest.weight, weight)
        given = {"weight": w_hat} if bias is None else {"weight": w_hat, "bias": bias.float()}
        error = map.new_zeros(())
        for x, y in zip(seen, wanted, strict=True):
            rows = _on_tokens(x.float().movedim(axis, -1), map)
            rows = faked(act, rows.flatten(0, -2)).reshape(rows.shape)
            made = torch.func.functional_call(layer, given, (rows.movedim(-1, axis),))
            error = error + (made - y).square().sum()
        return error / sum(y.square().sum() for y in wanted)


def _start(size: int, blocks: int, device: torch.device) -> Tensor:
    eye = torch.eye(size, device=device)
    return hadamard(eye, size).expand(blocks, size, size).contiguous()


def _on_tokens(x: Tensor, map: Tensor) -> Tensor:
    """x (..., I) M^T, block by block."""
    wide = torch.promote_types(x.dtype, map.dtype)
    blocks = x.unflatten(-1, (-1, map.shape[-1])).to(wide)
    return torch.einsum("...kg,khg->...kh", blocks, map.to(wide)).flatten(-2).to(x.dtype)


def _on_weight(weight: Tensor, map: Tensor, groups: int) -> Tensor:
    """A weight (O, I / groups, ...) times M, block by block: for inputs that M is applied to."""
    size = map.shape[-1]
    w = weight.unflatten(0, (groups, -1)).unflatten(2, (-1, size))  # (n, O / n, K / n, G, ...)
    blocks = map.unflatten(0, (groups, -1))  # (n, K / n, G, G)
    return torch.einsum("nokg...,nkgh->nokh...", w, blocks).flatten(2, 3).flatten(0, 1)
