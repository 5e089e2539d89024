"""Classifier-free guidance over scales, as a network that wraps a network.

Sources: Tian et al. 2024, "Visual Autoregressive Modeling", released code (a weight that grows with
the scale); Han et al. 2024, "Infinity: Scaling Bitwise AutoRegressive Modeling for High-Resolution
Image Synthesis", released code (a constant one).
Letters: B rows, n tokens of a scale, L tokens of all K scales, V codes.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from genvis.config import config
from genvis.types import Cond, ScaleBackbone


@config
class ScaleGuidance:
    """scale 1 is no guidance; the released VAR's `cfg` is scale - 1, so that its 1.5 is 2.5 here.

    linear: from 1 at the first scale to `scale` at the last one; constant: the same everywhere.
    """

    scale: float = 1.0
    schedule: Literal["linear", "constant"] = "linear"

    def weights(self, scales: int) -> list[float]:
        """One a scale."""
        shares = [k / max(1, scales - 1) for k in range(scales)]
        linear = self.schedule == "linear"
        return [1 + (self.scale - 1) * (share if linear else 1) for share in shares]


@dataclass(frozen=True)
class GuidedScales:
    """A `ScaleBackbone` with logits free + weight (given - free), where the free ones are those
    without the condition. Its memory is a pair, each batch-first as the network made it.

    weights (L, 1): one a token.
    """

    net: ScaleBackbone
    scales: tuple[int, ...]
    weights: Tensor

    @classmethod
    def of(
        cls, net: ScaleBackbone, scales: tuple[int, ...], guidance: ScaleGuidance, device: Any
    ) -> "GuidedScales":
        pairs = zip(guidance.weights(len(scales)), scales, strict=True)
        weights = [weight for weight, p in pairs for _ in range(p * p)]
        return cls(net, scales, torch.tensor(weights, device=device)[:, None])

    def __call__(self, x: Tensor, cond: Cond) -> Tensor:
        return self._guide(self.net(x, cond), self.net(x, cond.dropped()))

    def extend(self, x: Tensor | None, scale: int, cond: Cond, memory: Any) -> tuple[Tensor, Any]:
        mine, other = memory or (None, None)
        given, mine = self.net.extend(x, scale, cond, mine)
        free, other = self.net.extend(x, scale, cond.dropped(), other)
        first = sum(p * p for p in self.scales[:scale])
        return self._guide(given, free, first), (mine, other)

    def prefill(self, x: Tensor, scales: int, cond: Cond) -> tuple[Tensor, Any]:
        given, mine = self.net.prefill(x, scales, cond)
        free, other = self.net.prefill(x, scales, cond.dropped())
        return self._guide(given, free), (mine, other)

    def _guide(self, given: Tensor, free: Tensor, first: int = 0) -> Tensor:
        weights = self.weights[first : first + given.shape[1]]
        return torch.lerp(free.float(), given.float(), weights)
