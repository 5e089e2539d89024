"""Layer-wise reconstruction: weight, bias and ranges of a layer are fitted to its own output.

    min |Q(W') Q(x) + b' - (W x + b)|^2  over W', b' and the ranges of Q(W'),

straight through the rounding. Static input ranges are found afterwards, with these weights.

Source: Hubara et al. 2021, "Accurate Post Training Quantization With Small Calibration Sets"
(AdaQuant), with the learning rates of its code.
Letters: as in `genvis.quant.transform`; Q the formats of weight and activation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genvis.config import config
from genvis.quant.activations import Activation
from genvis.quant.blocks import ranges, split
from genvis.quant.format import Format, Params
from genvis.quant.transform import Layer, Seen, faked, through, with_weight
from genvis.random import permutation

LOOKS = 20  # at the whole error, after as many shares of the steps


@config
class AdaQuant:
    """Learning rates are Adam's; a step is on `batch` rows of what one call was given."""

    steps: int = 1000
    batch: int = 50
    weight_lr: float = 1e-5
    bias_lr: float = 1e-3
    range_lr: float = 1e-3
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1:
            raise ValueError(
                f"steps and batch must be at least 1, got {self.steps} and {self.batch}"
            )
        if min(self.weight_lr, self.bias_lr, self.range_lr) < 0:
            raise ValueError("learning rates must not be negative")

    def pack(
        self, layer: Layer, format: Format, act: Activation | None, seen: Seen | None
    ) -> tuple[Layer, Mapping[str, Tensor]]:
        weight = layer.weight.detach()
        if seen is None or not weight.isfinite().all():
            return layer, format.pack(weight)
        fit = Fit.of(layer, format)
        with torch.no_grad():
            wanted = [layer(x).float() for x in seen]
            given = through(lambda x: _rounded(act, x.float()), layer, seen) or ()
        best, least = fit.result(), fit.error(layer, given, wanted).item()
        adam = torch.optim.Adam(
            [
                {"params": [fit.weight], "lr": self.weight_lr},
                {"params": [] if fit.bias is None else [fit.bias], "lr": self.bias_lr},
                {"params": [fit.low, fit.high], "lr": self.range_lr},
            ]
        )
        for step in range(1, self.steps + 1):
            call = step % len(given)
            rows = permutation(len(given[call]), step)[: self.batch]
            with torch.enable_grad():
                error = fit.error(layer, [given[call][rows]], [wanted[call][rows]])
            adam.zero_grad()
            error.backward()
            adam.step()
            if step % max(1, self.steps // LOOKS) == 0:
                with torch.no_grad():
                    now = fit.error(layer, given, wanted).item()
                if now < least:
                    best, least = fit.result(), now
        codes, params, bias = best
        return with_weight(layer, weight, bias), format.parts(codes, params)


@dataclass(frozen=True)
class Fit:
    """What is learned of a layer: weight (O, I, ...), bias (O,), range of every block (R, K)."""

    format: Format
    weight: Tensor
    bias: Tensor | None
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, layer: Layer, format: Format) -> "Fit":
        low, high = ranges(split(layer.weight.detach().float(), format.group))
        bias = None if layer.bias is None else _leaf(layer.bias)
        return cls(format, _leaf(layer.weight), bias, _leaf(low), _leaf(high))

    def params(self) -> Params:
        return self.format.fit(self.low.clamp_max(0), self.high.clamp_min(0))

    def error(self, layer: Layer, given: Seen, wanted: Seen) -> Tensor:
        """The mean squared difference to what is wanted of the inputs given."""
        numbers = {"weight": self.format.fake(self.weight, self.params())}
        if self.bias is not None:
            numbers["bias"] = self.bias
        made = [torch.func.functional_call(layer, numbers, (x,)) for x in given]
        total = sum((y - z).square().sum() for y, z in zip(made, wanted, strict=True))
        return torch.as_tensor(total / sum(y.numel() for y in made))

    @torch.no_grad()
    def result(self) -> tuple[Tensor, Params, Tensor | None]:
        codes, params = self.format.encode(self.weight, self.params())
        return codes, params, None if self.bias is None else self.bias.clone()


def _leaf(number: Tensor) -> Tensor:
    return number.detach().float().clone().requires_grad_()


def _rounded(act: Activation | None, x: Tensor) -> Tensor:
    """Tokens (..., I) as quantized; a static range is that of all of them."""
    return x if act is None else faked(act.format, x.flatten(0, -2)).reshape(x.shape)
