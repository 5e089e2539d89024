"""Denoising with a loss at every stage, for networks whose `stages` predict more than once.

Sources: Liu et al. 2024, "Alleviating Distortion in Image Generation via Multi-Resolution Diffusion
Models and Time-Dependent Layer Normalization" (DiMR): coefficients 1/4 and 1 for its resolutions;
Zheng et al. 2024, "Learning Stackable and Skippable LEGO Bricks": the mean over bricks.
Letters: B batch, C channels, H W map size, h w a stage's, K stages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import reduce
from torch import Tensor, nn

from genvis.config import config
from genvis.objectives.denoising import Denoising, DenoisingLoss, Trained
from genvis.types import Cond


@config
class StagedDenoising(Denoising):
    coefficients: tuple[float, ...] | None = None  # of the stages in order; null: 1/K each

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coefficients is not None and not all(c >= 0 for c in self.coefficients):
            raise ValueError(f"coefficients must be at least 0, got {self.coefficients}")

    def build(self, model: Trained) -> "StagedLoss":
        plain = super().build(model)
        return StagedLoss(self, plain.process, plain.prediction, plain.tokenizer)


@dataclass(frozen=True)
class StagedLoss(DenoisingLoss):
    objective: StagedDenoising

    def error(
        self, net: nn.Module, x: Tensor, t: Tensor, cond: Cond, wanted: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As in `DenoisingLoss`: the errors (B,) of all stages in one, the last stage's output."""
        outputs = [self.prediction.split(out) for out in all_stages(net, x, t, cond)]
        errors = stage_errors([out for out, _ in outputs], wanted)  # (B, K)
        coefficients = self.objective.coefficients or (1 / len(outputs),) * len(outputs)
        if len(coefficients) != len(outputs):
            raise ValueError(
                f"coefficients must be one for each of the network's {len(outputs)} stages, got "
                f"{len(coefficients)}"
            )
        last, var = outputs[-1]
        return errors @ errors.new_tensor(coefficients), last.float(), var


def stage_errors(outputs: Sequence[Tensor], wanted: Tensor) -> Tensor:
    """Mean squared error (B, K) of every stage's prediction (B, C, h, w) of `wanted` (B, C, H, W),
    at its own resolution.
    """
    errors = []
    for out in outputs:
        target = shrink(wanted, out.shape[-1])
        if out.shape != target.shape:
            raise ValueError(
                f"a stage's output is {tuple(out.shape)}, its target is {tuple(target.shape)}: "
                "check backbone.channels and learned_variance"
            )
        errors.append((out.float() - target).square().flatten(1).mean(1))
    return torch.stack(errors, dim=1)


def shrink(x: Tensor, width: int) -> Tensor:
    """x (B, C, H, W) summed over squares of side r = W / width and divided by r: white noise stays
    white noise of variance one.
    """
    r = x.shape[-1] // width
    return reduce(x, "b c (h r) (w s) -> b c h w", "sum", r=r, s=r) / r


def all_stages(net: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> list[Tensor]:
    """`net.stages(x, t, cond)`, also where the network is wrapped for data-parallel training.

    Such a wrapper averages gradients only after a call of its own, so during that call the
    network's forward is its `stages`.
    """
    inner: Any = getattr(net, "module", net)
    if not hasattr(inner, "stages"):
        raise ValueError(
            f"the staged objective needs a network with stages, and {type(inner).__name__} has "
            "none: use denoising"
        )
    wrapped = inner is not net
    if not wrapped:
        return list(inner.stages(x, t, cond))
    own = vars(inner).get("forward")  # accelerate sets one on the instance
    inner.forward = lambda *inputs: inner.stages(*inputs)
    try:
        return list(net(x, t, cond))
    finally:
        del inner.forward
        if own is not None:
            inner.forward = own
