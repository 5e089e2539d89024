"""Scaling of long skip connections.

Source: Huang, Zhou, Yan and Lin 2023, "ScaleLong: Towards More Stable Training of Diffusion Model
via Scaling Network Long Skip Connection", section 4, and the released code; the gates per channel
are the squeeze-and-excitation of Hu et al. 2018, which takes the same form on feature maps.
Letters: B batch, C channels, H W map size, N tokens, D width, i number of a skip.

A network builds the chosen config once, with the channels of its skips, and calls the module on
each skip just before it joins the main path:

    self.skip_gates = config.skips.build(channels=(64, 64, 128))  # maps (B, C, H, W), outermost
    self.skip_gates = config.skips.build(channels=(D,) * n, tokens=N)  # first; tokens (B, N, D)
    x = self.skip_gates(i, skip)  # i = 1 is the outermost skip: left first, joined last

Only the gates have weights; with every other choice the state dict is the unscaled network's.
"""

from collections.abc import Sequence
from typing import Protocol

from einops import rearrange, reduce
from torch import Tensor, nn

from genvis.config import config


class SkipScale(Protocol):
    """A choice of scaling. `build` takes the channels of every skip, the outermost first, and the
    number of tokens where skips are (B, N, D); its module maps (i, skip) to a tensor like skip.
    """

    def build(self, channels: Sequence[int], tokens: int | None = None) -> nn.Module: ...


@config
class Unscaled:
    """Every skip as it is."""

    def build(self, channels: Sequence[int], tokens: int | None = None) -> nn.Module:
        return Factors((1.0,) * len(channels))


@config
class InverseSqrt2:
    """Every skip times 1/sqrt(2), the main path untouched."""

    def build(self, channels: Sequence[int], tokens: int | None = None) -> nn.Module:
        return Factors((2**-0.5,) * len(channels))


@config
class Constant:
    """Skip i times kappa^(i-1): the outermost is untouched, the deepest shrinks most."""

    kappa: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.kappa <= 1:
            raise ValueError(f"kappa must be in (0, 1], got {self.kappa}")

    def build(self, channels: Sequence[int], tokens: int | None = None) -> nn.Module:
        return Factors(tuple(self.kappa**i for i in range(len(channels))))


@config
class PerToken:
    """A learned gate per token, from the mean over features; ties a network to one resolution."""

    shared: bool = False  # one gate network for all skips
    reduction: int = 16

    def build(self, channels: Sequence[int], tokens: int | None = None) -> nn.Module:
        if tokens is None:
            raise ValueError("skips are maps (B, C, H, W), which have no tokens; use per_channel")
        if self.shared:
            return SharedTokenGate(tokens, self.reduction)
        return TokenGates([Gate(tokens, self.reduction) for _ in channels])


@config
class PerChannel:
    """A learned gate per channel and skip, from the mean over positions; any resolution."""

    reduction: int = 16

    def build(self, channels: Sequence[int], tokens: int | None = None) -> nn.Module:
        return ChannelGates(channels, self.reduction, tokens)


class Factors(nn.Module):
    """One fixed number per skip."""

    def __init__(self, factors: Sequence[float]) -> None:
        super().__init__()
        self.factors = tuple(factors)

    def forward(self, i: int, skip: Tensor) -> Tensor:
        factor = self.factors[i - 1]
        return skip if factor == 1 else factor * skip


class Gate(nn.Module):
    """sigmoid(W2 relu(W1 x)) on x (B, size); torch's initial values, so gates start near 0.5."""

    def __init__(self, size: int, reduction: int) -> None:
        super().__init__()
        if not 1 <= reduction <= size:
            raise ValueError(
                f"reduction must be in 1..{size}, the number of gates of a skip, got {reduction}"
            )
        self.layer1 = nn.Linear(size, size // reduction)
        self.layer2 = nn.Linear(size // reduction, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer2(self.layer1(x).relu()).sigmoid()


class SharedTokenGate(Gate):
    def forward(self, i: int, skip: Tensor) -> Tensor:  # type: ignore[override]
        return skip * super().forward(skip.mean(-1))[..., None]


class TokenGates(nn.ModuleList):
    """Numbered in order of use, as released: 0 gates the innermost skip."""

    def forward(self, i: int, skip: Tensor) -> Tensor:
        return skip * self[len(self) - i](skip.mean(-1))[..., None]


class ChannelGates(nn.ModuleList):
    """Numbered from the outside: i - 1 gates skip i."""

    def __init__(self, channels: Sequence[int], reduction: int, tokens: int | None) -> None:
        super().__init__([Gate(width, reduction) for width in channels])
        self.axes = "b c h w" if tokens is None else "b n c"
        self.spread = "b c -> b c 1 1" if tokens is None else "b c -> b 1 c"

    def forward(self, i: int, skip: Tensor) -> Tensor:
        gates = self[i - 1](reduce(skip, f"{self.axes} -> b c", "mean"))  # (B, C)
        return skip * rearrange(gates, self.spread)
