"""The parts of a convolutional U: residual blocks, resampling, attention to pixels and to text.

Sources: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", appendix B; Dhariwal and Nichol
2021, "Diffusion Models Beat GANs on Image Synthesis", section 3 (adaptive group norm, resampling
inside residual blocks, heads of one width); Rombach et al. 2022, section 3.3 (cross-attention).
Letters: B batch, C channels, H W map size, E width of the condition, L text tokens, S their width.
"""

import math
from typing import TypeVar

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from genvis.nn.transformer import CrossAttention, SelfAttention

Text = tuple[Tensor, Tensor]  # tokens (B, L, S) and which may be attended to (B, L)
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups, or fewer so that each has at least 4 channels; channels divisible by 4."""
    return nn.GroupNorm(math.gcd(32, channels // 4), channels)


def halved(x: Tensor) -> tuple[int, int]:
    """The size of x (B, C, H, W) one level down; an odd side is rounded up."""
    return -(-x.shape[2] // 2), -(-x.shape[3] // 2)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """x one level down (mean of 2 x 2 pixels, fewer at an odd edge), one up (nearest), or as is."""
    if x.shape[2] > size[0] or x.shape[3] > size[1]:
        return F.avg_pool2d(x, 2, ceil_mode=True)
    return x if x.shape[2:] == size else F.interpolate(x, size=size, mode="nearest")


class ResBlock(nn.Module):
    """Two convolutions beside a shortcut. The condition scales and shifts between them, and the
    block may change the size on its way. It starts as its shortcut: the last weights are zero.
    """

    def __init__(self, channels: int, out: int, cond: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = group_norm(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(cond, 2 * out))
        self.norm2 = group_norm(out)
        self.drop = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(out, out, 3, padding=1))
        self.shortcut = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, c: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """x (B, C, H, W) and c (B, E) -> (B, out, H, W), or (B, out, *size)."""
        size = size or (x.shape[2], x.shape[3])
        h = self.conv1(resize(F.silu(self.norm1(x)), size))
        scale, shift = self.modulation(c)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.shortcut(resize(x, size)) + self.conv2(self.drop(F.silu(h)))


class ResizeConv(nn.Module):
    """Resampling without a residual block: resize, then convolve; the condition is not used."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, c: Tensor, size: tuple[int, int]) -> Tensor:
        return self.conv(resize(x, size))


class PixelAttention(nn.Module):
    """x plus attention between its pixels; the identity at first."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.attn = SelfAttention(channels, heads)
        zeroed(self.attn.proj)

    def forward(self, x: Tensor, text: Text | None = None) -> Tensor:
        tokens = rearrange(self.norm(x), "b c h w -> b (h w) c")
        return x + rearrange(self.attn(tokens), "b (h w) c -> b c h w", h=x.shape[2])


class TextAttention(nn.Module):
    """x plus attention from its pixels to the text; the identity at first."""

    def __init__(self, channels: int, heads: int, text: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.attn = CrossAttention(channels, heads, text)
        zeroed(self.attn.proj)

    def forward(self, x: Tensor, text: Text) -> Tensor:
        tokens, visible = text
        pixels = rearrange(self.norm(x), "b c h w -> b (h w) c")
        out = self.attn(pixels, self.attn.keys(tokens), visible)
        return x + rearrange(out, "b (h w) c -> b c h w", h=x.shape[2])


def zeroed(layer: Layer) -> Layer:
    """The same layer with zero weights, so that what it ends starts without effect."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
