"""Scaling of input channels: y = (W diag(s)) (x / s), with s between activations and weights.

    SmoothQuant  s_j = max |x_j|^a / max |W_j|^(1 - a)
    AWQ          s_j = (mean |x_j|)^a, a of least |Q(W diag(s)) (x / s) - W x|^2

Sources: Xiao et al. 2023, "SmoothQuant"; Lin et al. 2024, "AWQ". At a = 1/2
SmoothQuant is the salience balancing of Wu et al. 2024, "PTQ4DiT", up to timestep weights.
Letters: as in `genvis.quant.transform`; a is `alpha`, Q the weight's format.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from genvis.config import config
from genvis.quant.modules import Around
from genvis.quant.transform import (
    AXES,
    Layer,
    Rest,
    Seen,
    groups,
    inputs,
    scaled,
    through,
    tokens,
    with_weight,
)

SMALLEST = 1e-5  # what a channel that is never used counts as


class Divided(Around):
    """`layer` on inputs divided by `scale` (I,), which keeps float32 under casts."""

    scale: Tensor

    def __init__(self, layer: nn.Module, scale: Tensor, like: Layer) -> None:
        super().__init__(layer)
        self.axis, self.groups = AXES[type(like)], groups(like)
        self.keep("scale", scale)

    @property
    def weight(self) -> Tensor:
        weight = self.layer.weight
        return scaled(weight, 1 / self.scale.double(), self.groups).to(weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(
            (x.movedim(self.axis, -1) / self.scale).to(x.dtype).movedim(-1, self.axis)
        )


def divided(layer: Layer, rest: Rest, seen: Seen | None, scale: Tensor) -> nn.Module:
    """The layer on divided inputs, with the rest done to the one inside."""
    weight = scaled(layer.weight.double(), scale.double(), groups(layer))
    inner = with_weight(layer, weight, layer.bias)
    return Divided(rest.make(inner, through(lambda x: x / scale, layer, seen)), scale, layer)


def per_input(layer: Layer) -> Tensor:
    """The largest magnitude (I,) of the weights that meet each input, float32."""
    n, (outputs, own) = groups(layer), layer.weight.shape[:2]
    weight = layer.weight.detach().abs().float().reshape(n, outputs // n, own, -1)
    return weight.amax((1, 3)).flatten()


def ones(layer: Layer) -> Tensor:
    return torch.ones(inputs(layer), device=layer.weight.device)


@config
class Smooth:
    alpha: float = 0.5  # 0: all difficulty stays with the activations, 1: goes to the weights
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}")

    def apply(self, layer: Layer, rest: Rest, seen: Seen | None) -> nn.Module:
        if seen is None:
            return divided(layer, rest, seen, ones(layer))
        x = tokens(layer, seen).abs().amax(0).float().clamp_min(SMALLEST)
        w = per_input(layer).clamp_min(SMALLEST)
        return divided(layer, rest, seen, x**self.alpha / w ** (1 - self.alpha))


@config
class AWQ:
    """Tries alpha = i / points; i = 0 leaves the layer as it is."""

    points: int = 20
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.points < 1:
            raise ValueError(f"points must be at least 1, got {self.points}")

    def apply(self, layer: Layer, rest: Rest, seen: Seen | None) -> nn.Module:
        if rest.weight is None:
            raise ValueError("awq looks for the scale that is best for a weight's format, not null")
        if seen is None:
            return divided(layer, rest, seen, ones(layer))
        x = tokens(layer, seen).abs().mean(0).float().clamp_min(SMALLEST)
        tried = [_even(x ** (i / self.points)) for i in range(self.points + 1)]
        with torch.no_grad():
            errors = [self._error(layer, rest, seen, scale) for scale in tried]
        return divided(layer, rest, seen, tried[errors.index(min(errors))])

    def _error(self, layer: Layer, rest: Rest, seen: Seen, scale: Tensor) -> float:
        """|y_hat - y|^2, which for a linear layer is that of the weight's error alone."""
        assert rest.weight is not None
        weight, n = layer.weight.float(), groups(layer)
        w_hat = scaled(rest.weight.fake(scaled(weight, scale, n)), 1 / scale, n)
        wrong = with_weight(layer, w_hat - weight, None)
        return sum(float(wrong(x).double().square().sum()) for x in seen)


def _even(scale: Tensor) -> Tensor:
    """Lies evenly about 1, as in AWQ's code."""
    return scale / (scale.max() * scale.min()).sqrt()
