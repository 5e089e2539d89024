"""A network that is told in words: an encoder in front of a backbone, as one backbone.

Weights are `net.*` of the backbone and, of an encoder that is trained too, `text.*`; a frozen
encoder is no module and keeps its weights to itself.
Letters: B rows, L tokens of width D.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from genvis.types import Cond, TextEncoder, join, repeat, take, to

ROWS = 16  # prompts in one pass, where they are encoded once for all calls


class Prompted(nn.Module):
    """What both kinds share: conditions with prompts to conditions with text."""

    def __init__(self, text: TextEncoder, net: nn.Module) -> None:
        super().__init__()
        self.text, self.net = text, net

    def around(self, net: nn.Module) -> Self:
        """The same encoder in front of another network."""
        return type(self)(self.text, net)

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @torch.no_grad()
    def prepared(self, cond: Cond) -> Cond:
        """With the text of its prompts and of its negative ones, once for all calls to come; text
        that is there is kept. Every pass has `ROWS` prompts, the last one padded, so that a text is
        the same to the last bit whatever it is encoded with.
        """
        if cond.negative is not None:
            cond = replace(cond, negative=self.prepared(cond.negative))
        return self._encoded(cond, lambda prompts: in_passes(self.text, prompts))

    def told(self, cond: Cond, rows: int) -> Cond:
        """What the backbone sees: text for prompts and, where rows are dropped, the null prompt's
        as the negative.
        """
        cond = self._encoded(cond, self.text)
        if cond.drop is None or _is_null(cond.negative):
            return cond
        null = self.text([""]) if isinstance(self.text, nn.Module) else self.nothing
        null = repeat(to(null, self.device), rows)
        return replace(cond, drop=cond.drop.to(self.device), negative=null)

    @cached_property
    def nothing(self) -> Cond:
        """The null prompt's text by a frozen encoder, which guidance asks for at every call."""
        return self.text([""])

    def _encoded(self, cond: Cond, encode: Callable[[Sequence[str]], Cond]) -> Cond:
        """With the text of its prompts, if it has none; empty prompts are dropped rows."""
        if cond.prompts is None:
            return cond
        if cond.text is None:
            found = to(encode(cond.prompts), self.device)
            cond = replace(cond, text=found.text, text_mask=found.text_mask, pooled=found.pooled)
        empty = torch.tensor([not prompt.strip() for prompt in cond.prompts or ()])
        if not empty.any():
            return cond
        empty = empty.to(self.device)
        return replace(cond, drop=empty if cond.drop is None else empty | cond.drop)


class PromptedMaps(Prompted):
    """A `Backbone`."""

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.net(x, t, self.told(cond, len(x)))


class PromptedScales(Prompted):
    """A `ScaleBackbone`."""

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        return self.net(x, self.told(cond, len(x)))

    def extend(self, x: Tensor | None, scale: int, cond: Cond, memory: Any) -> tuple[Tensor, Any]:
        net: Any = self.net
        found: tuple[Tensor, Any] = net.extend(x, scale, self.told(cond, len(cond)), memory)
        return found

    def prefill(self, x: Tensor, scales: int, cond: Cond) -> tuple[Tensor, Any]:
        net: Any = self.net
        found: tuple[Tensor, Any] = net.prefill(x, scales, self.told(cond, len(x)))
        return found


def in_passes(text: TextEncoder, prompts: Sequence[str], rows: int = ROWS) -> Cond:
    """`text(prompts)` by passes of a fixed number of rows."""
    text.check(prompts)
    parts = []
    for start in range(0, len(prompts), rows):
        own = prompts[start : start + rows]
        padded = [*own, *[own[-1]] * (rows - len(own))]
        parts.append(take(text(padded), slice(0, len(own))))
    return join(parts)


def _is_null(negative: Cond | None) -> bool:
    """Whether it is the null prompt's text, as data whose texts are cached give it."""
    if negative is None or negative.text is None or negative.prompts is None:
        return False
    return not any(prompt.strip() for prompt in negative.prompts)
