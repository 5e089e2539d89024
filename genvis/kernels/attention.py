"""Scaled dot-product attention.

Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.1.
Letters: B batch, H heads, N queries, M keys, D head width.
"""

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Backend = Literal["auto", "sdpa", "reference"]


def attention_reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v; the definition that every fast path is compared with.

    q (B, H, N, D), k and v (B, H, M, D), mask bool broadcastable to (B, H, N, M): True = may
    attend.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ v


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, backend: Backend = "auto"
) -> Tensor:
    """Attention by the named backend; "auto" is torch's fused SDPA. Shapes as in
    `attention_reference`.
    """
    if backend in ("auto", "sdpa"):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if backend == "reference":
        return attention_reference(q, k, v, mask)
    raise ValueError(f"backend must be auto, sdpa or reference, got {backend!r}")
