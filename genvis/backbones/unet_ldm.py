"""The UNet of latent diffusion: residual blocks, and at chosen levels transformers that read texts.

Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", section
3.3 (Stable Diffusion 1 and 2); Podell et al. 2023, "SDXL", section 2 (depths by level, the image's
size as a condition); Li et al. 2024, "On the Scalability of Diffusion-based Text-to-Image
Generation", whose axes are `width` and `transformers`: depth at the levels of low resolution aligns
images with texts at the fewest parameters. Attribute names are those of published diffusers
weights.
Letters: B batch, C channels, H W map size, N = H W, E width of the condition, L text tokens of
width S.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from genvis.config import config
from genvis.kernels.attention import attention
from genvis.nn import SKIP_SCALES
from genvis.nn.conv import zeroed
from genvis.nn.embeddings import sinusoids
from genvis.nn.skips import SkipScale, Unscaled
from genvis.nn.text import text_or_null
from genvis.types import Cond

Text = tuple[Tensor, Tensor | None]  # tokens (B, L, S) and which are seen (B, L); None: all
SIZE_FREQUENCIES = 256  # for each of the six numbers that say an image's size


@config
class LDMUNetConfig:
    size: int | tuple[int, int] = 64  # trained on; larger and smaller maps run too
    channels: int = 4
    width: int = 320
    mult: tuple[int, ...] = (1, 2, 4, 4)  # of width, level by level; each next level halves the map
    depth: int = 2  # residual blocks a level; on the way up one more
    transformers: tuple[int, ...] = (1, 1, 1, 0)  # their depth behind every residual block; 0: none
    middle: int = 1  # depth of the one in the middle
    heads: tuple[int, ...] = (8, 8, 8, 8)  # of every level; the middle's are the last
    groups: int = 32  # of the group norms
    text_width: int = 768  # of cond.text
    pooled_width: int = 0  # of cond.pooled, which is added to the time; 0: none
    # of the image, to a side of a map cell: the image's size is then a condition too; 0: it is not
    pixels: int = 0
    skips: Annotated[SkipScale, SKIP_SCALES] = Unscaled()

    def __post_init__(self) -> None:
        sizes = (*self.shape, self.width, self.depth, self.groups, *self.mult, *self.heads)
        if not self.mult or min(*sizes, self.text_width) < 1:
            raise ValueError(
                "size, channels, width, mult, depth, heads, groups and text_width must be at least "
                "1"
            )
        if min(self.middle, self.pooled_width, self.pixels, *self.transformers) < 0:
            raise ValueError("transformers, middle, pooled_width and pixels must be at least 0")
        if not len(self.mult) == len(self.transformers) == len(self.heads):
            raise ValueError(
                "mult, transformers and heads must have a number for every level, got "
                f"{len(self.mult)}, {len(self.transformers)} and {len(self.heads)}"
            )
        for width, heads in zip(self.widths, self.heads, strict=True):
            if width % self.groups or width % heads:
                raise ValueError(
                    f"the width of every level must be divisible by groups and heads, got {width}, "
                    f"{self.groups} and {heads}"
                )
        self.check(*self.shape)

    @property
    def shape(self) -> tuple[int, int, int]:
        h, w = (self.size, self.size) if isinstance(self.size, int) else self.size
        return self.channels, h, w

    @property
    def num_classes(self) -> int:
        return 0

    @property
    def widths(self) -> list[int]:
        return [self.width * factor for factor in self.mult]

    def check(self, channels: int, height: int, width: int) -> None:
        """ValueError unless such a map can be halved once for every level but the first."""
        least = 2 ** (len(self.mult) - 1)
        if channels != self.channels or min(height, width) < least:
            raise ValueError(
                f"x must be (B, {self.channels}, H, W) with H and W at least {least}, "
                f"got (B, {channels}, {height}, {width})"
            )

    def build(self) -> "LDMUNet":
        return LDMUNet(self)


UNET_SD_1 = LDMUNetConfig()  # Stable Diffusion 1.1 to 1.5
UNET_SD_2 = LDMUNetConfig(heads=(5, 10, 20, 20), text_width=1024)
UNET_SDXL = LDMUNetConfig(
    size=128,
    mult=(1, 2, 4),
    transformers=(0, 2, 10),
    middle=10,
    heads=(5, 10, 20),
    text_width=2048,
    pooled_width=1280,
    pixels=8,
)
# 45% smaller than SDXL's, and as good (Li et al. 2024)
UNET_TD4_4 = replace(UNET_SDXL, transformers=(0, 4, 4), middle=4)


class LDMUNet(nn.Module):
    def __init__(self, config: LDMUNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, cond = config.widths, 4 * config.width
        self.conv_in = nn.Conv2d(config.channels, widths[0], 3, padding=1)
        self.time_embedding = Embedding(config.width, cond)
        extra = config.pooled_width + (6 * SIZE_FREQUENCIES if config.pixels else 0)
        self.add_embedding = Embedding(extra, cond) if extra else None

        self.down_blocks = nn.ModuleList()
        left = [widths[0]]  # channels of the skips, the outermost first
        last = len(widths) - 1
        for level, width in enumerate(widths):
            block = Level(config, level, [left[-1], *[width] * (config.depth - 1)])
            left += [width] * config.depth
            if level < last:
                block.downsamplers.append(Downsample(width))
                left.append(width)
            self.down_blocks.append(block)
        self.skip_gates = config.skips.build(channels=left)
        self.mid_block = Level(config, last, [widths[-1]] * 2, config.middle)

        self.up_blocks = nn.ModuleList()
        width = widths[-1]
        for level in reversed(range(len(widths))):
            inputs = [width, *[widths[level]] * config.depth]
            block = Level(config, level, [n + left.pop() for n in inputs])
            width = widths[level]
            if level:
                block.upsamplers.append(Upsample(width))
            self.up_blocks.append(block)
        self.conv_norm_out = nn.GroupNorm(config.groups, width)
        self.conv_out = zeroed(nn.Conv2d(width, config.channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Network output for x (B, C, H, W) at network time t (B,) and cond.text (B, L, S); shaped
        like x. H and W need not be those of the config.

        Rows that are dropped take the text and the pooled text of cond.negative, or else zeros.
        """
        if x.ndim != 4:
            raise ValueError(f"x must be (B, C, H, W), got {tuple(x.shape)}")
        self.config.check(*x.shape[1:])
        text = text_or_null(cond, len(x), self.config.text_width, x)
        c = self.time_embedding(sinusoids(t, self.config.width).to(x.dtype))  # (B, E)
        if self.add_embedding is not None:
            c = c + self.add_embedding(self.extra(x, cond))

        skips = [self.conv_in(x)]
        for block in self.down_blocks:
            for resnet, attend in pairs(block):
                skips.append(attend(resnet(skips[-1], c), text))
            for down in block.get_submodule("downsamplers").children():
                skips.append(down(skips[-1]))
        first, then = self.mid_block.resnets
        h = then(self.mid_block.attentions[0](first(skips[-1], c), text), c)
        for block in self.up_blocks:
            for resnet, attend in pairs(block):
                i = len(skips)  # from 1, the outermost
                h = torch.cat([h, self.skip_gates(i, skips.pop())], dim=1)
                h = attend(resnet(h, c), text)
            for up in block.get_submodule("upsamplers").children():
                h = up(h, skips[-1].shape[2:])
        return self.conv_out(F.silu(self.conv_norm_out(h)))

    def extra(self, x: Tensor, cond: Cond) -> Tensor:
        """The pooled text, and the sinusoids of the image's size, of its crop's corner and of the
        size wanted of it: here the whole image, in pixels. (B, pooled_width + 6 * 256)
        """
        parts = []
        if self.config.pooled_width:
            parts.append(pooled_of(cond, len(x), self.config.pooled_width, x))
        if self.config.pixels:
            h, w = (float(self.config.pixels * side) for side in x.shape[2:])
            numbers = torch.tensor([h, w, 0.0, 0.0, h, w], device=x.device)
            waves = sinusoids(numbers, SIZE_FREQUENCIES).flatten()
            parts.append(waves.to(x.dtype).expand(len(x), -1))
        return torch.cat(parts, dim=1)


class Embedding(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, out)
        self.linear_2 = nn.Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class Level(nn.Module):
    """The parts of one level on the way down or up, or of the middle, which has one transformer."""

    def __init__(
        self, config: LDMUNetConfig, level: int, inputs: list[int], middle: int | None = None
    ) -> None:
        super().__init__()
        width, depth = config.widths[level], config.transformers[level]
        self.resnets = nn.ModuleList([ResBlock(config, n, width) for n in inputs])
        depths = [depth] * len(inputs) if middle is None else [middle]
        self.attentions = nn.ModuleList(
            [Transformer(config, level, n) if n else NoTransformer() for n in depths]
        )
        self.downsamplers, self.upsamplers = nn.ModuleList(), nn.ModuleList()


def pairs(level: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Every residual block with what comes after it."""
    parts = (level.get_submodule(name).children() for name in ("resnets", "attentions"))
    return zip(*parts, strict=True)


class ResBlock(nn.Module):
    """Two convolutions beside a shortcut; the condition is added between them."""

    def __init__(self, config: LDMUNetConfig, channels: int, out: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(config.groups, channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.time_emb_proj = nn.Linear(4 * config.width, out)
        self.norm2 = nn.GroupNorm(config.groups, out)
        self.conv2 = zeroed(nn.Conv2d(out, out, 3, padding=1))
        self.conv_shortcut = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, C, H, W) and c (B, E) -> (B, out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(F.silu(c))[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class NoTransformer(nn.Module):
    def forward(self, x: Tensor, text: Text) -> Tensor:
        return x


class Transformer(nn.Module):
    """x plus what blocks of attention to the map, attention to the text and an MLP make of it."""

    def __init__(self, config: LDMUNetConfig, level: int, depth: int) -> None:
        super().__init__()
        width, heads = config.widths[level], config.heads[level]
        self.norm = nn.GroupNorm(config.groups, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList(
            [Block(width, heads, config.text_width) for _ in range(depth)]
        )
        self.proj_out = zeroed(nn.Linear(width, width))

    def forward(self, x: Tensor, text: Text) -> Tensor:
        tokens = self.proj_in(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        for block in self.transformer_blocks:
            tokens = block(tokens, text)
        return x + rearrange(self.proj_out(tokens), "b (h w) c -> b c h w", h=x.shape[2])


class Block(nn.Module):
    def __init__(self, width: int, heads: int, text_width: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1 = Attention(width, heads, width)
        self.attn2 = Attention(width, heads, text_width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, text: Text) -> Tensor:
        """x (B, N, C)."""
        own = self.norm1(x)
        x = x + self.attn1(own, own)
        x = x + self.attn2(self.norm2(x), *text)
        return x + self.ff(self.norm3(x))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor, context: Tensor, seen: Tensor | None = None) -> Tensor:
        """x (B, N, C) attends to context (B, L, S), where it is seen (B, L)."""
        q, k, v = (
            rearrange(value, "b n (h d) -> b h n d", h=self.heads)
            for value in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        out = attention(q, k, v, None if seen is None else seen[:, None, None])
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


class FeedForward(nn.Module):
    """Two layers, the first gated by GELU (GEGLU)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class GEGLU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


def pooled_of(cond: Cond, rows: int, width: int, like: Tensor) -> Tensor:
    """cond.pooled (B, width); of dropped rows that of cond.negative, or else zeros."""
    pooled, drop = cond.pooled, cond.drop
    if pooled is None:
        if drop is None or not bool(drop.all()):
            raise ValueError("cond.pooled is missing: this network reads a pooled text")
        pooled = like.new_zeros(rows, width)
    if pooled.shape != (rows, width):
        raise ValueError(f"cond.pooled must be ({rows}, {width}), got {tuple(pooled.shape)}")
    if drop is not None:
        none = cond.negative.pooled if cond.negative is not None else None
        none = torch.zeros_like(pooled) if none is None else none.to(pooled)
        pooled = torch.where(drop[:, None], none, pooled)
    return pooled.to(like.dtype)
