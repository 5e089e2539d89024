"""Tokens that stay in full precision, such as the first one of a text: activation and weight.

    y = concat(W x[kept], Q(W) Q(x[others]))

The first token of a CLIP text embedding is the same for every prompt and far larger than the
others, so that a range for all would leave these nothing. What does not depend on the input is
computed once and stored.

Source: Zhao et al. 2024, "MixDQ" (BOS-aware quantization).
Letters: L tokens of a row, T of them kept, I inputs, O outputs.
"""

import copy

import torch
from torch import Tensor, nn

from genvis.config import config
from genvis.quant.modules import Around
from genvis.quant.transform import Layer, Rest, Seen


class Kept(Around):
    """`layer` on all tokens but those numbered `tokens`, which `exact` is for."""

    def __init__(self, layer: nn.Module, tokens: tuple[int, ...], exact: nn.Module) -> None:
        super().__init__(layer)
        self.tokens, self.exact = tokens, exact

    def forward(self, x: Tensor) -> Tensor:
        """(..., L, I) to (..., L, O)."""
        kept, others = divide(x, self.tokens)
        places = [*self.tokens, *others_of(x, self.tokens)]
        y = torch.cat([self.exact(kept), self.layer(others)], -2)
        return y[..., sorted(range(len(places)), key=places.__getitem__), :]


class Rows(nn.Module):
    """`rows` (T, O), whatever comes in."""

    rows: Tensor

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows.expand(*x.shape[:-2], *self.rows.shape)


@config
class KeepTokens:
    tokens: tuple[int, ...] = (0,)
    # whether they are the same for every input, so that their outputs are stored; else the weight
    # is kept in full precision beside the quantized one
    same: bool = True

    def __post_init__(self) -> None:
        if not self.tokens or len(set(self.tokens)) < len(self.tokens) or min(self.tokens) < 0:
            raise ValueError(f"tokens must be different numbers from 0 on, got {self.tokens}")

    @property
    def needs_data(self) -> bool:
        return self.same

    def apply(self, layer: Layer, rest: Rest, seen: Seen | None) -> nn.Module:
        if not isinstance(layer, nn.Linear):
            raise ValueError("keep_tokens is for sequences, and this is a convolution")
        others = None if seen is None else [divide(x, self.tokens)[1] for x in seen]
        exact = self._rows(layer, seen) if self.same else copy.deepcopy(layer)
        return Kept(rest.make(layer, others), self.tokens, exact)

    def _rows(self, layer: nn.Linear, seen: Seen | None) -> nn.Module:
        if seen is None:
            return Rows(layer.weight.new_zeros(len(self.tokens), layer.out_features))
        kept = torch.cat([divide(x, self.tokens)[0].flatten(0, -3) for x in seen])  # (N, T, I)
        if (kept - kept[:1]).abs().max() > 1e-3 * kept.abs().max():
            raise ValueError(
                f"tokens {self.tokens} are not the same for every input: keep_tokens needs "
                "same: false for them"
            )
        with torch.no_grad():
            return Rows(layer(kept[0]))


def divide(x: Tensor, tokens: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The given tokens (..., T, I) and the others (..., L - T, I) of x (..., L, I)."""
    if x.ndim < 3 or x.shape[-2] <= max(tokens):
        raise ValueError(f"tokens {tokens} must be of rows (..., L, I), got {tuple(x.shape)}")
    return x[..., list(tokens), :], x[..., others_of(x, tokens), :]


def others_of(x: Tensor, tokens: tuple[int, ...]) -> list[int]:
    return [i for i in range(x.shape[-2]) if i not in tokens]
