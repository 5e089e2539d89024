"""The parts of a vision transformer block.

Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"; attribute names are those of timm,
which published weights use. Letters: B batch, N tokens, D width, C channels, p patch side.
"""

from typing import Literal

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from genvis.kernels.attention import attention


class PatchEmbed(nn.Module):
    """Non-overlapping p x p patches to tokens, row-major: (B, C, H, W) -> (B, N, D)."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.proj(x), "b d h w -> b (h w) d")


class SelfAttention(nn.Module):
    """Multi-head self-attention with one packed projection, rows ordered q, k, v.

    `bias` is the packed projection's; `qk_norm` puts an RMS norm on the queries and keys of every
    head.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be divisible by heads, got {width} and {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.q_norm = nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, N, D) to (B, N, D); mask bool broadcastable to (B, H, N, N): True = may attend."""
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        out = attention(self.q_norm(q), self.k_norm(k), v, mask)
        return self.drop(self.proj(rearrange(out, "b h n d -> b n (h d)")))


class CrossAttention(nn.Module):
    """Multi-head attention to the tokens of a text; the names are PixArt's (Chen et al. 2023).

    Keys and values are made apart, so that a network may keep them from one call to the next.
    """

    def __init__(self, width: int, heads: int, text_width: int | None = None) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be divisible by heads, got {width} and {heads}")
        self.heads = heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(text_width or width, 2 * width)
        self.proj = nn.Linear(width, width)

    def keys(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, L, D / heads) of tokens (B, L, S)."""
        k, v = rearrange(
            self.kv_linear(tokens), "b l (two h d) -> two b h l d", two=2, h=self.heads
        )
        return k, v

    def forward(self, x: Tensor, kv: tuple[Tensor, Tensor], seen: Tensor | None = None) -> Tensor:
        """x (B, N, D) -> (B, N, D); seen (B, L): the tokens that count, at least one in every row;
        None: all.
        """
        q = rearrange(self.q_linear(x), "b n (h d) -> b h n d", h=self.heads)
        out = attention(q, *kv, None if seen is None else seen[:, None, None])
        return self.proj(rearrange(out, "b h n d -> b n (h d)"))


class MLP(nn.Module):
    """Two layers with GELU between them: its tanh approximation, or exact ("none")."""

    def __init__(
        self,
        width: int,
        hidden: int,
        dropout: float = 0.0,
        gelu: Literal["tanh", "none"] = "tanh",
        out: int | None = None,
    ) -> None:
        super().__init__()
        self.gelu = gelu
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out or width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(F.gelu(self.fc1(x), approximate=self.gelu)))


def check_map(x: Tensor, shape: tuple[int, int, int]) -> None:
    """ValueError unless x is (B, C, H, W) with that C, H, W."""
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"x must be (B, {', '.join(map(str, shape))}), got {tuple(x.shape)}")


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, N, D) scaled by 1 + scale and shifted, both (B, D)."""
    return x * (1 + scale[:, None]) + shift[:, None]
