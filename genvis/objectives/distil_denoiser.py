"""Denoising taught by another network: a student that is to do as its teacher did, such as a
quantized network what it did in full precision.

    w(t) [a |y - y'|^2 + (1 - a) |y - target|^2 + b mean_m |h_m - h'_m|^2 / |h'_m|^2]

of the outputs y of student and y' of teacher at the same x_t, t and (dropped) condition; h_m and
h'_m are what chosen modules of the two put out, and each |.|^2 is a mean.

Sources: Hinton et al. 2015, "Distilling the knowledge in a neural network"; Romero et al. 2015,
"FitNets" (features); He et al. 2024, "EfficientDM" (the output of a quantized denoiser). Ours: that
features are relative to the teacher's.
Letters: B batch, a share, b features weight, m modules.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genvis.config import config
from genvis.objectives.denoising import Denoising, DenoisingLoss, Trained
from genvis.objectives.teachers import teacher_of
from genvis.types import Cond


@config
class DistilDenoiser(Denoising):
    teacher: str  # a model folder, a finished run's folder or a hub id
    share: float = 1.0  # of the teacher's output; the rest is the data's
    # modules whose outputs are compared too: a regular expression on whole names; null: none
    features: str | None = None
    features_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.share <= 1 or self.features_weight < 0:
            raise ValueError("share must be in [0, 1] and features_weight at least 0")
        if self.features is not None:
            try:
                re.compile(self.features)
            except re.error as error:
                raise ValueError(f"features: not a regular expression: {error}") from error

    def build(self, model: Trained) -> "DistilDenoiserLoss":
        """ValueError unless the teacher's outputs mean the same, and its features are there."""
        plain = super().build(model)
        same = ("process", "prediction", "tokenizer")
        teacher = teacher_of(model, self.teacher, ("shape", "num_classes"), same)
        names: tuple[str, ...] = ()
        if self.features is not None:
            student: Any = model
            names = _chosen(student.net, self.features)
            if missing := [name for name in names if name not in _modules(teacher)]:
                raise ValueError(f"features: teacher {self.teacher} has no module {missing[0]!r}")
        return DistilDenoiserLoss(
            self, plain.process, plain.prediction, plain.tokenizer, teacher, names
        )


@dataclass(frozen=True)
class DistilDenoiserLoss(DenoisingLoss):
    """The teacher is frozen and in evaluation mode; names: of the modules that are compared."""

    objective: DistilDenoiser
    teacher: nn.Module
    names: tuple[str, ...] = ()

    def error(
        self, net: nn.Module, x: Tensor, t: Tensor, cond: Cond, wanted: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        with torch.no_grad(), watched(self.teacher, self.names) as theirs:
            taught, _ = self.prediction.split(self.teacher(x, t, cond))
        with watched(getattr(net, "module", net), self.names) as ours:
            data, out, var = super().error(net, x, t, cond, wanted)
        share = self.objective.share
        error = share * _mean_square(out - taught.float()) + (1 - share) * data
        if self.names:
            apart = [relative(ours[name], theirs[name], name) for name in self.names]
            error = error + self.objective.features_weight * torch.stack(apart).mean(0)
        return error, out, var


@contextmanager
def watched(net: nn.Module, names: tuple[str, ...]) -> Iterator[Mapping[str, Tensor]]:
    """What the named modules put out inside, the last time that each is called."""
    outputs: dict[str, Tensor] = {}
    modules = _modules(net)
    with ExitStack() as stack:
        for name in names:
            handle = modules[name].register_forward_hook(
                lambda *call, name=name: outputs.update({name: call[2]})
            )
            stack.callback(handle.remove)
        yield outputs


def relative(ours: Tensor, theirs: Tensor, name: str) -> Tensor:
    """The squared difference (B,) of features over the square of the teacher's."""
    if not isinstance(ours, Tensor) or ours.shape != theirs.shape:
        raise ValueError(f"features: what {name!r} puts out is not one map of the teacher's shape")
    scale = _mean_square(theirs.float()).clamp_min(torch.finfo(torch.float32).tiny)
    return _mean_square(ours.float() - theirs.float()) / scale


def _mean_square(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1)


def _modules(net: nn.Module) -> dict[str, nn.Module]:
    return dict(net.named_modules())


def _chosen(net: nn.Module, match: str) -> tuple[str, ...]:
    names = tuple(name for name in _modules(net) if re.fullmatch(match, name))
    if not names:
        raise ValueError(f"features: no module of {type(net).__name__} is named {match!r}")
    return names
