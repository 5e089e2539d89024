"""One range for all channels, where every channel had its own: for static activations.

    s_j = high_j - low_j,  z_j = -low_j / s_j,  s~ = center of s,  z~ = center of z,  r = s / s~,
    x' = (x - low) / r - z~ s~,   W' = W diag(r),   b' = b + W (low + r z~ s~)

so that channel j spans the range [-z~ s~, (1 - z~) s~], whatever it spanned before.

Sources: Li et al. 2023, "RepQ-ViT", with steps and zero points that are not rounded,
so that it holds for every number of bits; Yang et al. 2024, "DopQ-ViT", for the median. There the
normalisation before the layer takes x' over; here it stays in front of the layer, since what comes
after adaptive norms has no scale and shift of its own.
Letters: as in `genvis.quant.transform`; [low, high] what channel j spans.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from genvis.config import config
from genvis.quant.modules import Around
from genvis.quant.transform import (
    AXES,
    Layer,
    Rest,
    Seen,
    border,
    groups,
    inputs,
    padded,
    scaled,
    through,
    tokens,
    with_weight,
)

SMALLEST = 1e-5  # span of a channel that is constant


class Spread(Around):
    """`layer` on x / `scale` - `shift`, (I,) each, which keep float32 under casts.

    border: what a convolution is padded with before, since its zeros are others after.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, layer: nn.Module, scale: Tensor, shift: Tensor, like: Layer) -> None:
        super().__init__(layer)
        self.axis, self.groups = AXES[type(like)], groups(like)
        self.border, self.mode = border(like)
        self.keep("scale", scale)
        self.keep("shift", shift)

    @property
    def weight(self) -> Tensor:
        weight = self.layer.weight
        return scaled(weight, 1 / self.scale.double(), self.groups).to(weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        if any(self.border):
            x = functional.pad(x, self.border, mode=self.mode)
        rows = (x.movedim(self.axis, -1) / self.scale - self.shift).to(x.dtype)
        return self.layer(rows.movedim(-1, self.axis))


@config
class RepQ:
    center: Literal["mean", "median"] = "mean"  # of the channels' ranges
    needs_data: ClassVar[bool] = True

    def apply(self, layer: Layer, rest: Rest, seen: Seen | None) -> nn.Module:
        scale, shift = self._find(layer, seen)
        weight = scaled(layer.weight.double(), scale.double(), groups(layer))
        inner = _unpadded(with_weight(layer, weight, _bias(layer, weight, shift)))
        prepared = None if seen is None else [padded(x, layer) for x in seen]
        moved = through(lambda x: x / scale - shift, layer, prepared)
        return Spread(rest.make(inner, moved), scale, shift, layer)

    def _find(self, layer: Layer, seen: Seen | None) -> tuple[Tensor, Tensor]:
        if seen is None:
            one = torch.ones(inputs(layer), device=layer.weight.device)
            return one, torch.zeros_like(one)
        x = tokens(layer, seen)
        low, high = x.amin(0).float(), x.amax(0).float()
        s = (high - low).clamp_min(SMALLEST)
        center = torch.mean if self.center == "mean" else torch.median
        s_center, z_center = center(s), center(-low / s)
        scale = s / s_center
        return scale, low / scale + z_center * s_center


def _bias(layer: Layer, weight: Tensor, shift: Tensor) -> Tensor:
    """What the layer has with the scaled weight (O, I / G, ...): its own plus W' shift."""
    n, (outputs, own) = groups(layer), weight.shape[:2]
    w = weight.reshape(n, outputs // n, own, -1).sum(-1)
    back = torch.einsum("goi,gi->go", w, shift.double().reshape(n, own)).flatten()
    return back if layer.bias is None else layer.bias.double() + back


def _unpadded(layer: Layer) -> Layer:
    """Sets a layer that is ours alone to take a padded input."""
    if isinstance(layer, nn.Conv2d):
        layer.padding, layer.padding_mode = (0, 0), "zeros"
        layer._reversed_padding_repeated_twice = [0, 0, 0, 0]
    return layer
