"""The layers of ViTok: tubelets in and out, gated blocks, tables of positions.

Source: the release of Hansen-Estruch et al. 2025, whose attribute names these are; sinusoids as in
big_vision's ViT (Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k").
Letters: B batch, C image channels, T H W video size, q frames and p pixels of a token, (t, h, w)
the grid of N tokens, D width.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from genvis.nn.rotary import RotaryAttention, axial, frequencies, rotation
from genvis.tokenizers.towers import Tower

Gate = Literal["gelu", "silu"]
Rope = Literal["none", "1d", "2d", "mixed", "3d"]
Grid = tuple[int, int, int]  # tokens along time, height and width
GATES: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "silu": F.silu}
MLP_RATIO = 2.67


class TubeletEmbed(nn.Module):
    """Blocks of q frames and p x p pixels to tokens: (B, C, T, H, W) -> (B, N, D), row-major."""

    def __init__(self, channels: int, width: int, tubelet: int, patch: int) -> None:
        super().__init__()
        block = (tubelet, patch, patch)
        self.proj = nn.Conv3d(channels, width, kernel_size=block, stride=block)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.proj(x), "b d t h w -> b (t h w) d")


class TubeletDecode(nn.Module):
    """Tokens to blocks: (B, N, D) -> (B, C, T, H, W)."""

    def __init__(self, channels: int, width: int, tubelet: int, patch: int) -> None:
        super().__init__()
        block = (tubelet, patch, patch)
        self.proj = nn.ConvTranspose3d(width, channels, kernel_size=block, stride=block)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        t, h, w = grid
        return self.proj(rearrange(x, "b (t h w) d -> b d t h w", t=t, h=h, w=w))


class Transformer(nn.Module):
    """One tower, with rotary positions over the tokens' numbers or over the grid."""

    def __init__(self, tower: Tower, gate: Gate, rope: Rope, theta: float) -> None:
        super().__init__()
        self.tower, self.rope, self.theta = tower, rope, theta
        self.blocks = nn.ModuleList([Block(tower, gate) for _ in range(tower.depth)])
        self.norm = nn.LayerNorm(tower.width)

    def forward(self, x: Tensor, grid: Grid, freqs: Tensor | None = None) -> Tensor:
        """x (B, N, D): a grid, or a 1-D code and a grid; freqs: learned frequencies, if any."""
        for block, turn in zip(self.blocks, self.turns(x, grid, freqs), strict=True):
            x = block(x, turn)
        return self.norm(x)

    def turns(self, x: Tensor, grid: Grid, freqs: Tensor | None) -> Sequence[Tensor | None]:
        """The rotation of every block."""
        depth, pairs = self.tower.depth, self.tower.width // self.tower.heads // 2
        if self.rope == "none":
            return [None] * depth
        t, row, column = coordinates(grid, x.device)
        if freqs is not None:
            per_head = rearrange(freqs.float(), "a l (h p) -> a l h p", p=pairs)
            places = torch.stack([column, row]).float()
            return rotation(torch.einsum("alhp,an->lhnp", per_head, places)).unbind(1)
        number = torch.arange(x.shape[1], device=x.device)
        axes = {"1d": [number], "2d": [column, row], "3d": [t, row, column]}[self.rope]
        shares = [(pairs + i) // len(axes) for i in range(len(axes))]  # 32 pairs: 10 + 11 + 11
        return [axial(axes, shares, self.theta)] * depth


class Block(nn.Module):
    def __init__(self, tower: Tower, gate: Gate) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(tower.width)
        self.attn = RotaryAttention(tower.width, tower.heads, bias=False)
        self.norm2 = nn.LayerNorm(tower.width)
        self.mlp = GatedMLP(tower.width, int(MLP_RATIO * tower.width), gate)

    def forward(self, x: Tensor, turn: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm1(x), turn)
        return x + self.mlp(self.norm2(x))


class GatedMLP(nn.Module):
    """Shazeer 2020, "GLU Variants Improve Transformer", with biases."""

    def __init__(self, width: int, hidden: int, gate: Gate) -> None:
        super().__init__()
        self.gate: Callable[[Tensor], Tensor] = GATES[gate]
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(width, hidden)
        self.fc3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.gate(self.fc1(x)) * self.fc2(x))


def coordinates(grid: Grid, device: torch.device | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Time, row and column of every token of a grid, each (N,) int64, row-major."""
    axes = [torch.arange(n, device=device) for n in grid]
    t, y, x = torch.meshgrid(*axes, indexing="ij")
    return t.flatten(), y.flatten(), x.flatten()


def sincos(axes: Sequence[Tensor], width: int) -> Tensor:
    """A table (N, D): [sin | cos] of every axis (N,) in turn, periods from 2 pi to 2 pi 10,000."""
    n = width // (2 * len(axes))
    powers = torch.arange(n, dtype=torch.float64, device=axes[0].device) / max(n - 1, 1)
    angles = [axis.double()[:, None] * 10_000.0**-powers for axis in axes]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], 1).float()


def mixed_frequencies(tower: Tower, theta: float) -> Tensor:
    """First values of learned rotary frequencies (2, depth, heads x pairs), along x and along y.

    Two groups of pairs look along perpendicular directions, turned at random for every head.
    """
    half = tower.width // tower.heads // 4
    turn = nn.init.uniform_(torch.empty(tower.depth, tower.heads, 1), 0, 2 * math.pi)
    directions = torch.cat([turn.expand(-1, -1, half), turn.expand(-1, -1, half) + math.pi / 2], -1)
    speed = frequencies(half, theta).repeat(2)
    return torch.stack([speed * directions.cos(), speed * directions.sin()]).flatten(2)
