"""How far a network is from itself once one of its layers is quantized.

    sqnr       10 log10(sum y^2 / sum (y_q - y)^2) of its outputs y, dB
    mse        mean (y_q - y)^2
    kl_logits  mean over tokens of KL(p || p_q) of its logits
    ssim       mean SSIM of the images it makes from the same noise
    image_mse  mean (x_q - x)^2 of these images x: what paired PSNR is of
    hessian    mean trace of the loss's Hessian in the weight, times sum (w_q - w)^2

A metric's `value` is what a table shows; its `loss` is what adds up over layers, at least 0.

Sources: Zhao et al. 2024, "MixDQ" (SSIM for layers that change the content, SQNR for others); Wang
et al. 2004 (SSIM, here under one uniform window as large as the image, as MixDQ has it); Dong et
al. 2020, "HAWQ-V2" (trace and its estimate).
Letters: N images, B rows, V codes.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from genvis.compression import METRICS
from genvis.config import config
from genvis.evaluation.similarity import agreement
from genvis.images import to_uint8
from genvis.objectives.divergences import Forward, tempered
from genvis.quant.report import sqnr
from genvis.random import HashKeys


@dataclass(frozen=True)
class Subject:
    """A network in evaluation mode, and what it takes to see what it does.

    calls: the arguments of its forward, each a nest of batch-first tensors. images() draws some
    (N, 3, H, W) in [-1, 1] with `net` as it is, from the same noise every time; loss() is the
    training loss of `net` on the same examples every time. identity: what tells the two from
    others of their kind, plain data.
    """

    net: nn.Module
    calls: tuple[tuple[Any, ...], ...]
    images: Callable[[], Tensor] | None = None
    loss: Callable[[], Tensor] | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def outputs(self) -> Tensor:
        """Of all calls, one after the other, on the CPU in float32."""
        return torch.cat([self.net(*call).float().cpu() for call in self.calls])


@dataclass(frozen=True)
class Changed:
    """A layer of the subject and the quantized one that is in its place."""

    name: str
    before: Any
    after: Any


class Metric(Protocol):
    def check(self, subject: Subject) -> None:
        """ValueError if the subject lacks what this looks at."""
        ...

    def reference(self, subject: Subject, layers: Mapping[str, nn.Module]) -> Any:
        """What is compared with, of the network as it is; `layers` are those to be quantized."""
        ...

    def value(self, subject: Subject, reference: Any, changed: Changed) -> float:
        """With the change in place."""
        ...

    def loss(self, value: float) -> float: ...


class _Outputs:
    """What compares outputs alone."""

    def check(self, subject: Subject) -> None:
        if not subject.calls:
            raise ValueError("calls: there are none to compare the outputs of")

    def reference(self, subject: Subject, layers: Mapping[str, nn.Module]) -> Tensor:
        return subject.outputs()


@config
class SQNR(_Outputs):
    def value(self, subject: Subject, reference: Tensor, changed: Changed) -> float:
        return sqnr(reference, subject.outputs())

    def loss(self, value: float) -> float:
        return 10 ** (-value / 10)  # noise per signal adds up, decibels do not


@config
class MSE(_Outputs):
    def value(self, subject: Subject, reference: Tensor, changed: Changed) -> float:
        return mse(reference, subject.outputs())

    def loss(self, value: float) -> float:
        return value


@config
class KLLogits(_Outputs):
    """For networks whose outputs are logits (B, L, V)."""

    def value(self, subject: Subject, reference: Tensor, changed: Changed) -> float:
        return float(tempered(Forward(), subject.outputs(), reference).double().mean())

    def loss(self, value: float) -> float:
        return max(0.0, value)  # rounding may take it below


class _Images:
    """What compares the images made from the same noise, in which errors of all steps meet."""

    def check(self, subject: Subject) -> None:
        if subject.images is None:
            name = METRICS.name_of(self)
            raise ValueError(f"{name} compares images: the subject must be able to draw some")

    def reference(self, subject: Subject, layers: Mapping[str, nn.Module]) -> Tensor:
        assert subject.images is not None
        return subject.images()


@config
class SSIM(_Images):
    window: int | None = None  # odd; null: the largest that fits

    def __post_init__(self) -> None:
        if self.window is not None and (self.window < 3 or self.window % 2 == 0):
            raise ValueError(f"window must be odd and at least 3, got {self.window}")

    def reference(self, subject: Subject, layers: Mapping[str, nn.Module]) -> Tensor:
        return to_uint8(super().reference(subject, layers))

    def value(self, subject: Subject, reference: Tensor, changed: Changed) -> float:
        assert subject.images is not None
        return ssim(to_uint8(subject.images()), reference, self.window)

    def loss(self, value: float) -> float:
        return 1 - value


@config
class ImageMSE(_Images):
    def value(self, subject: Subject, reference: Tensor, changed: Changed) -> float:
        assert subject.images is not None
        return mse(reference, subject.images())

    def loss(self, value: float) -> float:
        return value


@config
class Hessian:
    """Of weights alone: a quantized activation moves none. The trace is Hutchinson's estimate,
    E z'Hz over z of random signs, of all layers from one product with H for each z.
    """

    probes: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise ValueError(f"probes must be at least 1, got {self.probes}")

    def check(self, subject: Subject) -> None:
        if subject.loss is None:
            raise ValueError("hessian differentiates a training loss: the subject must have one")

    def reference(self, subject: Subject, layers: Mapping[str, nn.Module]) -> dict[str, float]:
        assert subject.loss is not None
        weights = {name: layer.get_parameter("weight") for name, layer in layers.items()}
        traces = hessian_traces(subject.loss, weights, self.probes, self.seed)
        return {name: trace / weights[name].numel() for name, trace in traces.items()}

    def value(self, subject: Subject, reference: dict[str, float], changed: Changed) -> float:
        if getattr(changed.after, "activation", None) is not None:
            raise ValueError("hessian sees weights alone: give its layers choices without act")
        before, after = (
            layer.weight.detach().double() for layer in (changed.before, changed.after)
        )
        return reference[changed.name] * float((after - before).square().sum())

    def loss(self, value: float) -> float:
        return max(0.0, value)  # an estimate, or a saddle, may be below


def mse(reference: Tensor, other: Tensor) -> float:
    """The mean squared difference of two equal shapes."""
    return float((reference.double() - other.double()).square().mean())


def ssim(images: Tensor, references: Tensor, window: int | None = None) -> float:
    """The mean over pairs of uint8 images (N, 3, H, W), colours and all places of a uniform window,
    with the (co)variances of samples; window: its odd side, None the largest that fits.
    """
    side = min(images.shape[2:])
    window = window or side - 1 + side % 2
    if images.shape != references.shape or window > side:
        raise ValueError(
            f"ssim under {window} x {window} pixels of {tuple(images.shape)} and "
            f"{tuple(references.shape)}: shapes must be equal and hold the window"
        )
    count = window**2
    maps = agreement(
        images.double(),
        references.double(),
        lambda x: F.avg_pool2d(x, window, stride=1),
        correction=count / (count - 1),
    )
    return float(maps.mean())


def hessian_traces(
    loss: Callable[[], Tensor], weights: Mapping[str, Tensor], probes: int, seed: int
) -> dict[str, float]:
    """The trace of each weight's block of the Hessian of loss(), by Hutchinson's estimate."""
    totals = dict.fromkeys(weights, 0.0)
    with differentiable(weights), sdpa_kernel(SDPBackend.MATH):  # the others have no second order
        gradients = torch.autograd.grad(loss(), list(weights.values()), create_graph=True)
        for probe in range(probes):
            keys = HashKeys.of(seed, [probe])
            signs = [
                keys.fold(name).uniform(weight.shape, weight.device)[0].round() * 2 - 1
                for name, weight in weights.items()
            ]
            signs = [z.to(weight) for z, weight in zip(signs, weights.values(), strict=True)]
            products = torch.autograd.grad(
                gradients, list(weights.values()), signs, retain_graph=True, materialize_grads=True
            )
            for name, z, product in zip(weights, signs, products, strict=True):
                totals[name] += float((z * product).sum(dtype=torch.float64)) / probes
    return totals


@contextmanager
def differentiable(weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Gradients reach these weights inside, whether or not they do outside."""
    before = {name: weight.requires_grad for name, weight in weights.items()}
    try:
        for weight in weights.values():
            weight.requires_grad_()
        with torch.enable_grad():
            yield
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(before[name])
