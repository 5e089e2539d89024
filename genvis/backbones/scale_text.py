"""Texts as the condition of a next-scale transformer.

Source: Han et al. 2024, "Infinity: Scaling Bitwise AutoRegressive Modeling for High-Resolution
Image Synthesis", and the released code: a pooled text takes the place of the class, and every block
attends to the tokens, without a gate. The text of dropped rows is learned, as there, but has a
length of its own: nothing of the prompt is left, not even how long it was.
Letters: B rows, L text tokens of width S, N tokens of the learned text, D width, H heads.
"""

import torch
from torch import Tensor, nn

from genvis.config import config
from genvis.nn.text import text_of
from genvis.nn.transformer import CrossAttention
from genvis.types import Cond

KV = tuple[Tensor, Tensor]  # keys and values (B, H, N + L, D / H)


@config
class TextConfig:
    width: int = 768  # of cond.text
    null_tokens: int = 8  # of the learned text that dropped rows take

    def __post_init__(self) -> None:
        if min(self.width, self.null_tokens) < 1:
            raise ValueError("width and null_tokens of the text must be at least 1")


class TextEmbedding(nn.Module):
    def __init__(self, config: TextConfig, width: int, heads: int) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.empty(config.null_tokens, config.width))
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        self.query = nn.Parameter(torch.empty(1, width))
        self.pool = CrossAttention(width, heads, config.width)
        self.proj = nn.Sequential(
            nn.Linear(config.width, width), nn.GELU("tanh"), nn.Linear(width, width)
        )
        nn.init.normal_(self.null)
        nn.init.normal_(self.query, std=width**-0.5)

    def forward(self, cond: Cond, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """The pooled text (B, D), the tokens (B, N + L, D) and where they are seen (B, N + L).

        A row that is dropped, or whose text has no token, sees the learned text and no other.
        """
        text, seen = text_of(cond, rows, self.null.shape[1], self.null)
        null = self.null.expand(rows, -1, -1)
        tokens = self.norm(torch.cat([null, text], dim=1))
        none = ~seen.any(1, keepdim=True)
        seen = torch.cat([none.expand(-1, null.shape[1]), seen], dim=1)
        query = self.query.expand(rows, -1, -1)
        pooled = self.pool(query, self.pool.keys(tokens), seen)[:, 0]
        return pooled, self.proj(tokens), seen


class Cross(nn.Module):
    """Attention to the text behind a norm of its own, with keys and values that are made once."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps)
        self.attn = CrossAttention(width, heads)

    def forward(
        self, x: Tensor, before: KV | None, text: Tensor, seen: Tensor
    ) -> tuple[Tensor, KV]:
        """x (B, n, D) with what it reads, and the keys and values, which come back as `before`."""
        kv = self.attn.keys(text) if before is None else before
        return x + self.attn(self.norm(x), kv, seen), kv
