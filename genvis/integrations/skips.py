"""Scaled long skips in the UNets of diffusers, without a fork: hooks in front of their up blocks.

The hooks see the skips after the residuals of a ControlNet were added and before the block joins
them, in every up block that takes one skip for each of its residual blocks.
Letters: B batch, C channels, H W map size, N skips, i number of a skip from 1, the outermost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from genvis.nn.skips import SkipScale

SKIPS = "res_hidden_states_tuple"


def scale_skips(unet: Any, choice: SkipScale) -> "ScaledSkips":
    """Scale the long skips of a `UNet2DModel` or `UNet2DConditionModel` in place, until removed.

    Skip 1 is the output of conv_in. The module is registered as `unet.skip_gates`: gates are saved,
    moved and trained with the UNet, whose other keys stay as they are; to load them, scale the
    skips of a fresh UNet first. ValueError if the skips are scaled already, or if an up block does
    not join one skip in front of each residual block (the K-diffusion blocks).
    """
    if hasattr(unet, "skip_gates"):
        raise ValueError(f"the skips of this {type(unet).__name__} are scaled already; remove that")
    channels = skip_channels(unet)
    gates = choice.build(channels).to(unet.conv_in.weight)  # its device and dtype
    unet.add_module("skip_gates", gates)
    handles, above = [], len(channels)
    for block in unet.up_blocks:  # from the deepest to the outermost
        above -= len(block.resnets)
        hook = _Hook(gates, above + 1)
        handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
    return ScaledSkips(unet, tuple(handles))


@dataclass(frozen=True)
class ScaledSkips:
    """What `scale_skips` did to `unet`."""

    unet: nn.Module
    handles: Sequence[RemovableHandle]

    def remove(self) -> None:
        """Make the UNet what it was; the gates are gone."""
        for handle in self.handles:
            handle.remove()
        del self.unet.skip_gates


def skip_channels(unet: Any) -> tuple[int, ...]:
    """The channels of every long skip, the outermost first. ValueError as in `scale_skips`."""
    try:
        width = unet.down_blocks[-1].resnets[-1].out_channels  # of the main path, the middle's too
        found = []
        for resnet in (resnet for block in unet.up_blocks for resnet in block.resnets):
            found.append(resnet.in_channels - width)
            width = resnet.out_channels
    except AttributeError as error:
        raise ValueError(f"{type(unet).__name__} has no such blocks: {error}") from error
    if min(found) < 1:
        raise ValueError(
            f"the up blocks of this {type(unet).__name__} join no skip to some resnets"
        )
    return tuple(reversed(found))


class _Hook:
    """Scales the skips of one up block, of which the outermost has the number `first`.

    An object and no closure, so that a copy of the UNet has hooks on its own gates.
    """

    def __init__(self, gates: nn.Module, first: int) -> None:
        self.gates, self.first = gates, first

    def __call__(self, block: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """UNet2DModel passes the skips as second argument, UNet2DConditionModel by name."""
        if SKIPS in kwargs:
            return args, {**kwargs, SKIPS: self.scaled(kwargs[SKIPS])}
        return (args[0], self.scaled(args[1]), *args[2:]), kwargs

    def scaled(self, skips: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(self.gates(i, skip) for i, skip in enumerate(skips, start=self.first))
