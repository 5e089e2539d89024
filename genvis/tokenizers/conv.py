"""The convolutional encoder and decoder of VQGAN: residual blocks on a map that is halved level by
level, attention on the smallest one.

Source: Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis", appendix A;
attribute names as in the released VAR tokenizer. Letters: B rows, C channels, H W map size.
"""

from collections.abc import Iterable

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from genvis.config import config
from genvis.kernels.attention import attention


@config
class ConvConfig:
    """Shared by encoder and decoder: `multipliers` are the levels' widths, from the finest."""

    width: int = 160
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2  # residual blocks of a level; the decoder has one more
    groups: int = 32  # of every group norm
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if min(self.width, self.blocks, self.groups, *self.multipliers, 1) < 1:
            raise ValueError("width, multipliers, blocks and groups must be at least 1")
        if not self.multipliers or self.width % self.groups:
            raise ValueError(
                f"width must be divisible by groups, got {self.width} and {self.groups}, and there "
                "must be at least one multiplier"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    @property
    def factor(self) -> int:
        """How many pixels lie along one latent."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(self.width * multiplier for multiplier in self.multipliers)


class ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, config: ConvConfig) -> None:
        super().__init__()
        self.norm1 = norm(inputs, config)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = norm(outputs, config)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.nin_shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.nin_shortcut(x) + h


class Attention(nn.Module):
    """Between pixels, with one head."""

    def __init__(self, channels: int, config: ConvConfig) -> None:
        super().__init__()
        self.norm = norm(channels, config)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x))
        q, k, v = rearrange(qkv, "b (three c) h w -> three b 1 (h w) c", three=3)
        out = rearrange(attention(q, k, v), "b 1 (h w) c -> b c h w", h=x.shape[2])
        return x + self.proj_out(out)


class Downsample(nn.Module):
    """Zeros are added on the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks, each followed by attention where `attend`, then resampling."""

    def __init__(self, widths: Iterable[tuple[int, int]], attend: bool, config: ConvConfig) -> None:
        super().__init__()
        pairs = [*widths]
        self.block = nn.ModuleList(ResBlock(*pair, config) for pair in pairs)
        found = [Attention(outputs, config) for _, outputs in pairs] if attend else []
        self.attn = nn.ModuleList(found)
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for k, block in enumerate(self.block):
            x = block(x)
            x = self.attn[k](x) if len(self.attn) else x
        return self.upsample(self.downsample(x))


class Middle(nn.Module):
    def __init__(self, channels: int, config: ConvConfig) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, config)
        self.attn_1 = Attention(channels, config)
        self.block_2 = ResBlock(channels, channels, config)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Images (B, 3, H, W) -> (B, `channels`, H / factor, W / factor)."""

    def __init__(self, config: ConvConfig, channels: int) -> None:
        super().__init__()
        widths, last = config.channels, len(config.multipliers) - 1
        self.conv_in = nn.Conv2d(3, config.width, 3, padding=1)
        self.down = nn.ModuleList()
        inputs = config.width
        for k, width in enumerate(widths):
            pairs = [(inputs, width)] + [(width, width)] * (config.blocks - 1)
            level = Level(pairs, k == last, config)
            level.downsample = nn.Identity() if k == last else Downsample(width)
            self.down.append(level)
            inputs = width
        self.mid = Middle(widths[-1], config)
        self.norm_out = norm(widths[-1], config)
        self.conv_out = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """(B, `channels`, h, w) -> images (B, 3, h factor, w factor), not clamped."""

    def __init__(self, config: ConvConfig, channels: int) -> None:
        super().__init__()
        widths, last = config.channels, len(config.multipliers) - 1
        self.conv_in = nn.Conv2d(channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config)
        levels: list[Level] = []
        inputs = widths[-1]
        for k in reversed(range(len(widths))):
            pairs = [(inputs, widths[k])] + [(widths[k], widths[k])] * config.blocks
            levels.append(Level(pairs, k == last, config))
            levels[-1].upsample = Upsample(widths[k]) if k else nn.Identity()
            inputs = widths[k]
        self.up = nn.ModuleList(reversed(levels))  # numbered from the finest
        self.norm_out = norm(widths[0], config)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for k in reversed(range(len(self.up))):
            x = self.up[k](x)
        return self.conv_out(F.silu(self.norm_out(x)))


def norm(channels: int, config: ConvConfig) -> nn.GroupNorm:
    return nn.GroupNorm(config.groups, channels, eps=1e-6)
