"""A UNet for maps of any size: residual blocks, attention at chosen levels, scaled long skips.

Source: Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 3 (ADM),
whose order of layers this is. Text is attended to where pixels attend to each other; Li et al.
2024, "On the Scalability of Diffusion-based Text-to-Image Generation", advise the levels of low
resolution.
Letters: B batch, C channels, H W map size, E width of the condition, L text tokens, S their width.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genvis.config import config
from genvis.nn import SKIP_SCALES
from genvis.nn.conv import (
    PixelAttention,
    ResBlock,
    ResizeConv,
    Text,
    TextAttention,
    group_norm,
    halved,
    zeroed,
)
from genvis.nn.embeddings import LabelEmbedder, TimestepEmbedder
from genvis.nn.skips import SkipScale, Unscaled
from genvis.nn.text import text_of
from genvis.types import Cond


@config
class UNetConfig:
    size: int | tuple[int, int] = 8  # trained on; larger and smaller maps run too
    channels: int = 1
    width: int = 32
    mult: tuple[int, ...] = (1, 2)  # of width, level by level; each next level halves the map
    depth: int = 2  # residual blocks a level; on the way up one more
    attention: tuple[int, ...] = (1,)  # levels that attend, 0 the outermost; the middle always does
    head_width: int = 32
    resample: Literal["block", "conv"] = "block"  # inside a residual block, or by one convolution
    num_classes: int = 10  # 0: no labels
    null_class: bool = True  # a label-table row for "no label"
    text_width: int = 0  # of the text tokens; 0: no text
    skips: Annotated[SkipScale, SKIP_SCALES] = Unscaled()
    learned_variance: bool = False  # twice the output channels; the second half is the raw variance
    dropout: float = 0.0

    def __post_init__(self) -> None:
        sizes = (*self.shape, self.width, self.depth, self.head_width, *self.mult)
        if not self.mult or min(sizes) < 1:
            raise ValueError("size, channels, width, mult, depth and head_width must be at least 1")
        if min(self.num_classes, self.text_width) < 0:
            raise ValueError("num_classes and text_width must be at least 0")
        if self.width % 4:
            raise ValueError(f"width must be divisible by 4 for group norms, got {self.width}")
        levels = range(len(self.mult))
        if not set(self.attention) <= set(levels):
            raise ValueError(
                f"attention must name levels in 0..{len(levels) - 1}, got {list(self.attention)}"
            )
        for level in {*self.attention, levels[-1]}:
            if self.width * self.mult[level] % self.head_width:
                raise ValueError(
                    f"head_width must divide the widths of levels that attend, got "
                    f"{self.head_width} and {self.width * self.mult[level]} at level {level}"
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        self.check(*self.shape)

    @property
    def shape(self) -> tuple[int, int, int]:
        h, w = (self.size, self.size) if isinstance(self.size, int) else self.size
        return self.channels, h, w

    def check(self, channels: int, height: int, width: int) -> None:
        """ValueError unless such a map can be halved once for every level but the first."""
        least = 2 ** (len(self.mult) - 1)
        if channels != self.channels or min(height, width) < least:
            raise ValueError(
                f"x must be (B, {self.channels}, H, W) with H and W at least {least}, "
                f"got (B, {channels}, {height}, {width})"
            )

    def build(self) -> "UNet":
        return UNet(self)


# attention at 32, 16 and 8; class-conditional
UNET_ADM_256 = UNetConfig(
    size=256,
    channels=3,
    width=256,
    mult=(1, 1, 2, 2, 4, 4),
    attention=(3, 4, 5),
    head_width=64,
    num_classes=1000,
    null_class=False,  # it was guided by a classifier
    learned_variance=True,
)


class UNet(nn.Module):
    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        cond, widths = 4 * config.width, [config.width * factor for factor in config.mult]
        self.time = TimestepEmbedder(cond, frequencies=config.width)
        self.label: LabelEmbedder | None = None
        if config.num_classes:
            self.label = LabelEmbedder(config.num_classes, cond, config.null_class)
        self.text = TextTokens(config.text_width) if config.text_width else None
        self.conv_in = nn.Conv2d(config.channels, config.width, 3, padding=1)

        self.encoder = nn.ModuleList()
        left = [config.width]  # channels of the skips, the outermost first
        for level, width in enumerate(widths):
            if level:
                self.encoder.append(Down(config, left[-1]))
                left.append(left[-1])
            for _ in range(config.depth):
                self.encoder.append(Stage(config, left[-1], width, level in config.attention))
                left.append(width)
        self.skip_gates = config.skips.build(channels=left)

        self.middle = Stage(config, width, width, attend=True)
        self.last = Stage(config, width, width, attend=False)

        self.decoder = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for k in range(config.depth + 1):
                grow = k == 0 and level < len(widths) - 1
                attend = level in config.attention
                self.decoder.append(Join(config, width, left.pop(), widths[level], attend, grow))
                width = widths[level]
        self.norm_out = group_norm(width)
        out = config.channels * (1 + config.learned_variance)
        self.conv_out = zeroed(nn.Conv2d(width, out, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Network output for x (B, C, H, W) at network time t (B,): (B, C, H, W), or 2C with
        learned variance. H and W need not be those of the config.
        """
        if x.ndim != 4:
            raise ValueError(f"x must be (B, C, H, W), got {tuple(x.shape)}")
        self.config.check(*x.shape[1:])
        c = self.time(t)  # (B, E)
        if self.label is not None:
            c = c + self.label(cond)
        text = None if self.text is None else self.text(cond, len(x))

        skips = [self.conv_in(x)]
        for block in self.encoder:
            skips.append(block(skips[-1], c, text))
        h = self.last(self.middle(skips[-1], c, text), c, text)
        for block in self.decoder:
            i = len(skips)  # from 1, the outermost
            h = block(h, self.skip_gates(i, skips.pop()), c, text)
        return self.conv_out(F.silu(self.norm_out(h)))


class Stage(nn.Module):
    """A residual block, then, where its level attends, attention to the map and to the text."""

    def __init__(self, config: UNetConfig, channels: int, out: int, attend: bool) -> None:
        super().__init__()
        self.res = ResBlock(channels, out, 4 * config.width, config.dropout)
        self.mixers = nn.ModuleList()
        if attend:
            heads = out // config.head_width
            self.mixers.append(PixelAttention(out, heads))
            if config.text_width:
                self.mixers.append(TextAttention(out, heads, config.text_width))

    def forward(self, x: Tensor, c: Tensor, text: Text | None) -> Tensor:
        x = self.res(x, c)
        for mixer in self.mixers:
            x = mixer(x, text)
        return x


class Down(nn.Module):
    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.resample = resampler(config, channels)

    def forward(self, x: Tensor, c: Tensor, text: Text | None) -> Tensor:
        return self.resample(x, c, halved(x))


class Join(Stage):
    """A stage on the way up: what came from below, grown to the skip's size, beside the skip."""

    def __init__(
        self, config: UNetConfig, channels: int, skip: int, out: int, attend: bool, grow: bool
    ) -> None:
        super().__init__(config, channels + skip, out, attend)
        self.resample = resampler(config, channels) if grow else None

    def forward(  # type: ignore[override]
        self, x: Tensor, skip: Tensor, c: Tensor, text: Text | None
    ) -> Tensor:
        if self.resample is not None:
            x = self.resample(x, c, (skip.shape[2], skip.shape[3]))
        return super().forward(torch.cat([x, skip], dim=1), c, text)


def resampler(config: UNetConfig, channels: int) -> nn.Module:
    """(x, c, size) -> x at that size."""
    if config.resample == "conv":
        return ResizeConv(channels)
    return ResBlock(channels, channels, 4 * config.width, config.dropout)


class TextTokens(nn.Module):
    """The condition's text after a learned token that is always seen, alone where text is dropped.

    So "no text" has a meaning of its own, and a row whose mask is empty has something to attend to.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.null = nn.Parameter(torch.zeros(width))

    def forward(self, cond: Cond, rows: int) -> Text:
        """Tokens (B, 1 + L, S) and which are seen (B, 1 + L). Text may be missing only if every row
        is dropped.
        """
        text, seen = text_of(cond, rows, len(self.null), self.null)
        null = self.null.expand(rows, 1, -1)
        return torch.cat([null, self.norm(text)], dim=1), F.pad(seen, (1, 0), value=True)
