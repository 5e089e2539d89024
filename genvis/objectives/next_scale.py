"""Next-scale prediction: the cross-entropy of every token, given all coarser scales.

Source: Tian et al. 2024, "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale
Prediction", section 3.2 and the released trainer.
Letters: B rows, K scales of n_k tokens, L the sum of n_k, V codes, C code width.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genvis.config import config
from genvis.objectives import SCALE_WEIGHTS
from genvis.objectives.scale_weights import AllScales, ScaleWeights
from genvis.random import Keys
from genvis.types import Batch, Cond, Loss, Pyramid, ScaleBackboneConfig, ScaleTokenizer


class Parts(Protocol):
    @property
    def backbone(self) -> ScaleBackboneConfig: ...


class Trained(Protocol):
    @property
    def config(self) -> Parts: ...
    @property
    def tokenizer(self) -> ScaleTokenizer: ...


@config
class NextScale:
    """Every token weighs 1 / L, L the tokens of the scales that ever count."""

    scales: Annotated[ScaleWeights, SCALE_WEIGHTS] = AllScales()
    label_smoothing: float = 0.0
    # the share of rows trained without their condition, for classifier-free guidance
    drop: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.drop <= 1 or not 0 <= self.label_smoothing < 1:
            raise ValueError("drop must be in [0, 1] and label_smoothing in [0, 1)")

    def build(self, model: Trained) -> "NextScaleLoss":
        """ValueError where the model predicts no scales, or too few of them."""
        sides = getattr(model.config.backbone, "scales", None)
        if sides is None:
            kind = type(model.config.backbone).__name__
            raise ValueError(
                f"a next-scale objective trains next-scale backbones, and {kind} is none: take "
                "model.name scale_generator with var or mvar"
            )
        return NextScaleLoss(self, model.tokenizer, sides, self.scales(len(sides)))


@dataclass(frozen=True)
class NextScaleLoss:
    """sides, weights: of every scale its p_k and how much its tokens count. What lies above the
    last scale that counts is not run.
    """

    objective: NextScale
    tokenizer: ScaleTokenizer
    sides: tuple[int, ...]
    weights: tuple[float, ...]

    def at(self, step: int) -> "NextScaleLoss":
        return replace(self, weights=self.objective.scales(len(self.sides), step))

    def __call__(
        self, net: nn.Module, batch: Batch, keys: Keys, level: Tensor | None = None
    ) -> Loss:
        """The logs are cross-entropy and accuracy of each scale (`loss_4x4`), of all tokens
        (`loss_mean`) and of the finest scale (`loss_tail`).

        There is no path to fix a place on: a level says that this is validation, where no
        condition is dropped.
        """
        sides = self.sides[: max(k for k, weight in enumerate(self.weights) if weight) + 1]
        counts = [p * p for p in sides]
        pyramid = self.pyramid(batch.x)
        tokens = torch.cat(pyramid.tokens[: len(sides)], dim=1)  # (B, L_k)
        inputs = pyramid.inputs[:, : sum(counts[1:])]
        cond = batch.cond if level is not None else self._dropped(batch.cond, keys, tokens.device)

        logits = net(inputs, cond).float()  # (B, L_k, V)
        nll = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
        nll = nll.view_as(tokens)
        loss = self.of_tokens(logits, nll, inputs, cond) * self._weights(counts).to(nll)

        right = (logits.detach().argmax(2) == tokens).float()
        logs: dict[str, Tensor] = {}
        for name, part in (("loss", nll.detach()), ("accuracy", right)):
            parts = [scale.mean(1) for scale in part.split(counts, dim=1)]
            logs |= {f"{name}_{p}x{p}": mean for p, mean in zip(sides, parts, strict=True)}
            logs |= {f"{name}_mean": part.mean(1), f"{name}_tail": parts[-1]}
        return Loss(loss.sum(1), logs=logs)

    def of_tokens(self, logits: Tensor, nll: Tensor, inputs: Tensor, cond: Cond) -> Tensor:
        """What is minimised for every token (B, L_k), from its logits and its cross-entropy."""
        smooth = self.objective.label_smoothing
        if not smooth:
            return nll
        return (1 - smooth) * nll + smooth * (logits.logsumexp(2) - logits.mean(2))

    def pyramid(self, x: Any) -> Pyramid:
        """Of images, or of cached tokens: in float32 and without gradients."""
        cached = isinstance(x, tuple)
        device = (x[0] if cached else x).device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return self.tokenizer.pyramid(x) if cached else self.tokenizer.encode(x)

    def _weights(self, counts: list[int]) -> Tensor:
        """Of every token that is run, (L_k,)."""
        ever = self.objective.scales(len(self.sides))
        total = sum(p * p for p, weight in zip(self.sides, ever, strict=True) if weight)
        factors = torch.tensor(self.weights[: len(counts)]) / total
        return factors.repeat_interleave(torch.tensor(counts))

    def _dropped(self, cond: Cond, keys: Keys, device: torch.device) -> Cond:
        if not self.objective.drop:
            return cond
        drop = keys.fold("drop").uniform(device=device) < self.objective.drop
        return replace(cond, drop=drop if cond.drop is None else drop | cond.drop)
