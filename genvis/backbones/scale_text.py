"""Texts as the condition of a next-scale transformer.

Source: Han et al. 2024, "Infinity: Scaling Bitwise AutoRegressive Modeling for High-Resolution
Image Synthesis", and the released code: a pooled text takes the place of the class, and every block
attends to the tokens, without a gate. The text of dropped rows is learned, as there, but has a
length of its own: nothing of the prompt is left, not even how long it was.
Letters: B rows, L text tokens of width S, N tokens of the learned text, D width, H heads.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from genvis.config import config
from genvis.kernels.attention import attention
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
        self.pool = CrossAttention(width, config.width, heads)
        self.proj = nn.Sequential(
            nn.Linear(config.width, width), nn.GELU("tanh"), nn.Linear(width, width)
        )
        nn.init.normal_(self.null)
        nn.init.normal_(self.query, std=width**-0.5)

    def forward(self, cond: Cond, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """The pooled text (B, D), the tokens (B, N + L, D) and where they are seen (B, N + L).

        A row that is dropped, or whose text has no token, sees the learned text and no other.
        """
        text, seen = self._given(cond, rows)
        null = self.null.expand(rows, -1, -1)
        tokens = self.norm(torch.cat([null, text.to(null.dtype)], dim=1))
        none = ~seen.any(1, keepdim=True)
        seen = torch.cat([none.expand(-1, null.shape[1]), seen], dim=1)
        query = self.query.expand(rows, -1, -1)
        pooled = self.pool(query, self.pool.keys(tokens), seen)[:, 0]
        return pooled, self.proj(tokens), seen

    def _given(self, cond: Cond, rows: int) -> tuple[Tensor, Tensor]:
        """The text (B, L, S) and which of its tokens count (B, L)."""
        text, drop, width = cond.text, cond.drop, self.null.shape[1]
        if text is None:
            if drop is None or not bool(drop.all()):
                raise ValueError("cond.text is missing: this network is text-conditional")
            text = self.null.new_empty(rows, 0, width)
        if text.ndim != 3 or text.shape[2] != width:
            raise ValueError(f"cond.text must be (B, L, {width}), got {tuple(text.shape)}")
        seen = cond.text_mask
        if seen is None or cond.text is None:
            seen = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
        return text, seen if drop is None else seen & ~drop[:, None]


class CrossAttention(nn.Module):
    """Attention to texts, scores divided by sqrt(D / H)."""

    def __init__(self, width: int, text_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mat_q = nn.Linear(width, width)
        self.mat_kv = nn.Linear(text_width, 2 * width)
        self.proj = nn.Linear(width, width)

    def keys(self, text: Tensor) -> KV:
        """The keys and values of the tokens (B, L, S)."""
        k, v = rearrange(self.mat_kv(text), "b l (two h d) -> two b h l d", two=2, h=self.heads)
        return k, v

    def forward(self, x: Tensor, kv: KV, seen: Tensor) -> Tensor:
        """x (B, n, D) to (B, n, D); seen (B, L)."""
        q = rearrange(self.mat_q(x), "b n (h d) -> b h n d", h=self.heads)
        out = attention(q, *kv, seen[:, None, None])
        return self.proj(rearrange(out, "b h n d -> b n (h d)"))
