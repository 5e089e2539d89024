"""What a network reads of the text in a condition.

Letters: B rows, L tokens of width S.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from genvis.types import Cond


def text_of(cond: Cond, rows: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The text (B, L, S), of the type of `like`, and its tokens that count (B, L): none of a row
    that is dropped. Those that do not are zeros.

    Where every row is dropped, text may be missing; L is then 0. ValueError if text or mask are of
    another shape, or text is missing.
    """
    text, mask, drop = cond.text, cond.text_mask, cond.drop
    if text is None:
        if drop is None or not bool(drop.all()):
            raise ValueError("cond.text is missing: this network is text-conditional")
        text, mask = like.new_zeros(rows, 0, width), None
    if text.ndim != 3 or text.shape[0] != rows or text.shape[2] != width:
        raise ValueError(
            f"cond.text must be (B, L, {width}), got {tuple(text.shape)} for {rows} rows"
        )
    seen = text.new_ones(text.shape[:2], dtype=torch.bool) if mask is None else mask
    if seen.shape != text.shape[:2] or seen.dtype != torch.bool:
        raise ValueError(
            f"cond.text_mask must be {tuple(text.shape[:2])} bool, as cond.text, "
            f"got {tuple(seen.shape)} {seen.dtype}"
        )
    text = text.to(like.dtype)
    if drop is not None:
        seen = seen & ~drop[:, None]
    if mask is None and drop is None:
        return text, seen
    return text.masked_fill(~seen[..., None], 0), seen


def text_or_negative(cond: Cond, rows: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """As `text_of`, for a network without a "no text" of its own: dropped rows have the text of
    cond.negative, where that is given.
    """
    text, seen = text_of(cond, rows, width, like)
    if cond.drop is None or cond.negative is None or cond.negative.text is None:
        return text, seen
    other = text_of(replace(cond.negative, drop=None), rows, width, like)
    length = max(text.shape[1], other[0].shape[1])
    (text, seen), (null, null_seen) = (padded(*given, length) for given in ((text, seen), other))
    drop = cond.drop[:, None]
    return torch.where(drop[..., None], null, text), torch.where(drop, null_seen, seen)


def padded(text: Tensor, seen: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Text (B, L, S) with zeros after it, up to `length` tokens, and its mask (B, L) with them."""
    missing = length - text.shape[1]
    return F.pad(text, (0, 0, 0, missing)), F.pad(seen, (0, missing))


def text_or_null(
    cond: Cond, rows: int, width: int, like: Tensor, null: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The text (B, L, S) that rows attend to, and its tokens that count (B, L), of which every row
    has one; None: all.

    A row that is dropped, or whose text has no token, takes `null` (N, S); without that the text of
    cond.negative, and where there is none a token of zeros. ValueError as `text_of`.
    """
    read = text_or_negative if null is None else text_of
    text, seen = read(cond, rows, width, like)
    if cond.text_mask is None and cond.drop is None:
        return text, None
    null = like.new_zeros(1, width) if null is None else null
    own, length = len(null), max(text.shape[1], len(null))
    none = ~seen.any(1, keepdim=True)
    text, seen = padded(text, seen, length)
    null = F.pad(null, (0, 0, 0, length - own))
    real = torch.arange(length, device=seen.device) < own
    return torch.where(none[..., None], null, text), torch.where(none, real, seen)
