"""What is done to a layer before anything in it is rounded: the function stays the same.

A transformation replaces a layer by modules around another one, whose numbers are easier to round:

    y = W x = (W diag(s)) (x / s) = (W R) (R^T x) = (W - L) x + L x = W_1 x_1 + W_2 x_2 = ...

and hands that one to the transformations after it and at last to the formats (`rest.make`). So the
order in a rule is from the outside in: `[split, smooth, low_rank]` smooths each part on its own and
decomposes what is smooth. All stays local: what divides a layer's inputs sits in front of it.

Letters: N tokens, I inputs, O outputs, G groups of a convolution. Tokens are rows of inputs: of a
sequence its tokens, of a map its pixels with all their channels.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from genvis.quant.activations import Activation
from genvis.quant.blocks import ranges, split
from genvis.quant.format import Format

Layer = nn.Linear | nn.Conv2d
# what a layer was called with: the inputs of its calls, each as it was
Seen = Sequence[Tensor]

AXES: dict[type[nn.Module], int] = {nn.Linear: -1, nn.Conv2d: -3}  # where the inputs are


class Rest(Protocol):
    """What is still to be done with a layer: the transformations left, then these formats."""

    @property
    def weight(self) -> Format | None: ...
    @property
    def act(self) -> Activation | None: ...
    def make(self, layer: Layer, seen: Seen | None) -> nn.Module: ...


class Transform(Protocol):
    @property
    def needs_data(self) -> bool:
        """Whether it looks at what the layer was called with."""
        ...

    def apply(self, layer: Layer, rest: Rest, seen: Seen | None) -> nn.Module:
        """A module with the function of `layer`, which is not written into, up to rounding.

        Without `seen` the numbers that depend on it are placeholders for those of a file; names and
        shapes of what the module holds depend on `layer` and the plan alone. ValueError if the
        layer cannot be transformed.
        """
        ...


def tokens(layer: Layer, seen: Seen) -> Tensor:
    """All inputs (N, I) of a layer, one after the other, float32 or better."""
    axis = AXES[type(layer)]
    rows = torch.cat([x.movedim(axis, -1).flatten(0, -2) for x in seen])
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def through(step: Callable[[Tensor], Tensor], layer: Layer, seen: Seen | None) -> Seen | None:
    """What is seen behind a step on tokens (..., I) that is put before the layer."""
    if seen is None:
        return None
    axis = AXES[type(layer)]
    return [step(x.movedim(axis, -1)).movedim(-1, axis) for x in seen]


def faked(format: Format | None, rows: Tensor) -> Tensor:
    """Rows (R, ...) as quantized, with gradients also through the ranges of their own."""
    if format is None:
        return rows
    return format.fake(rows, format.fit(*ranges(split(rows.float(), format.group))))


def with_weight(layer: Layer, weight: Tensor, bias: Tensor | None) -> Layer:
    """A layer of the same kind and settings with another weight (O', I', ...) and bias (O',)."""
    made = copy.deepcopy(layer, {id(layer.weight): _parameter(weight, layer)})
    made.bias = None if bias is None else _parameter(bias, layer)
    outputs, inputs = weight.shape[:2]
    if isinstance(made, nn.Linear):
        made.in_features, made.out_features = inputs, outputs
    else:
        made.in_channels, made.out_channels = inputs * made.groups, outputs
    return made


def scaled(weight: Tensor, s: Tensor, groups: int) -> Tensor:
    """A weight (O, I / G, ...) with what meets input j times s_j, (I,)."""
    w = rearrange(weight, "(g o) i ... -> g o i ...", g=groups)
    s = rearrange(s, "(g i) -> g 1 i", g=groups).reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
    return (w * s).flatten(0, 1)


def groups(layer: Layer) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def inputs(layer: Layer) -> int:
    return layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features


def border(layer: Layer) -> tuple[list[int], str]:
    """How a layer pads its input: the widths and the mode that `functional.pad` takes."""
    if isinstance(layer, nn.Linear):
        return [0, 0], "constant"
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return list(layer._reversed_padding_repeated_twice), mode


def padded(x: Tensor, layer: Layer) -> Tensor:
    """An input as the layer pads it."""
    widths, mode = border(layer)
    return functional.pad(x, widths, mode=mode) if any(widths) else x


def ungrouped(layer: Layer, what: str) -> None:
    """ValueError for a convolution in groups, which `what` is not for."""
    if groups(layer) > 1:
        raise ValueError(f"{what} is for layers without groups, got {groups(layer)}")


def _parameter(value: Tensor, layer: Layer) -> nn.Parameter:
    value = value.detach().to(layer.weight.dtype).contiguous()
    return nn.Parameter(value.clone(), layer.weight.requires_grad)
