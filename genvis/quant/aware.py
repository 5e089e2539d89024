"""Training through quantization: layers whose weight is trained in full precision and used as
quantized, by the rules of a plan.

The gradient passes straight through the rounding, to weights that are not clipped. The range of a
row of weights or of a token is its own at every step; or, `scales: learned`, the scales of integer
weights are parameters that start there. What trains computes bit for bit what a plan's packed
layers do with the same numbers (`packed_state`).

Sources: Bengio et al. 2013, "Estimating or propagating gradients" (straight through); Esser et al.
2020, "Learned step size quantization" (learned scales and the size of their gradient); Nagel et
al. 2022, "Overcoming oscillations in quantization-aware training" (damping).
Letters: as in `genvis.quant.format`; w weight, w_hat as quantized.
"""

import copy
import math
from dataclasses import fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from genvis.config import config
from genvis.quant.activations import Static, StaticInput
from genvis.quant.blocks import count, ranges, split
from genvis.quant.format import Format, Params
from genvis.quant.integer import Integer
from genvis.quant.modules import PreparedLayer, QuantizedLayer, quantized
from genvis.quant.observers import MinMax
from genvis.quant.plan import Plan, Rule
from genvis.quant.powers import TINY
from genvis.quant.rounding import NEAREST
from genvis.quant.transform import Layer, Seen

Scales = Literal["min_max", "learned"]


class AwareLayer(QuantizedLayer):
    """`latent` is a plain layer; `scale` (R, K), if learned, that of its weight, with `zero`."""

    format: Format

    def __init__(self, layer: Layer, format: Format, scales: Scales) -> None:
        super().__init__()
        count(layer.weight.shape, format.group)  # a ValueError if it does not fit
        self.format, self.latent = format, copy.deepcopy(layer)
        self.scale: nn.Parameter | None = None
        if scales == "learned":
            self._learn_scale(layer)
        self.train(layer.training)

    @property
    def weight(self) -> Tensor:
        return self.format.fake(self.latent.weight, self.params())

    @property
    def bias(self) -> Tensor | None:
        return self.latent.bias

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = functional_call(self.latent, {"weight": self.weight}, (x,))
        return out

    def params(self) -> Params | None:
        """Those that are learned; None where the weight's own range decides."""
        if self.scale is None:
            return None
        slow = _Slowed.apply(self.scale, self.slowness)
        return {
            "scale": slow.clamp_min(TINY),
            **{name: self.get_buffer(name) for name in self.kept},
        }

    def parts(self) -> dict[str, Tensor]:
        """What a packed layer stores of the weight."""
        with torch.no_grad():
            return self.format.parts(*self.format.encode(self.latent.weight, self.params()))

    def unrest(self) -> Tensor:
        """Sum of (w - w_hat)^2 over the weights that are not clipped; its gradient pulls each to
        the number that it is rounded to now.
        """
        blocks = split(self.latent.weight.float(), self.format.group)
        with torch.no_grad():
            params = self.params() or self.format.fit(*ranges(blocks))
            step = self.format.step(params)[..., None]
            v = self.format.in_steps(blocks, step)
            w_hat = self.format.value(self.format.round(v, params), params) * step
            inside = self.format.inside(v, params)
        return ((blocks - w_hat).square() * inside).sum()

    def _learn_scale(self, layer: Layer) -> None:
        if not isinstance(self.format, Integer) or self.format.scale != "float32":
            raise ValueError(f"learned scales are float32 ones of integers, got {self.format}")
        blocks = split(layer.weight.detach().float(), self.format.group)
        params = self.format.fit(*ranges(blocks))
        self.scale = nn.Parameter(params.pop("scale"), layer.weight.requires_grad)
        self.slowness = 1 / math.sqrt(blocks.shape[-1] * self.format.limits[1])
        for name, part in params.items():
            self.keep(name, part)


class AwareStatic(StaticInput):
    """A range that its observer moves with every batch of training; before, a batch has its own."""

    def __init__(self, config: Static) -> None:
        if not isinstance(config.observer, MinMax):
            raise ValueError(
                f"act: training follows ranges by min_max or ema, got {config.observer}"
            )
        super().__init__(config)

    def forward(self, x: Tensor) -> Tensor:
        if self.calibrated and not self.training:
            return super().forward(x)
        observer = self.config.observer
        batch = observer.see(x)
        before = self.range.unbind() if self.calibrated else batch
        moved = torch.stack(observer.join(before, batch))
        if self.training:
            self.range.copy_(moved)
        params = self.config.format.fit(*moved.reshape(2, 1, 1))
        return self.config.format.fake(x.reshape(1, -1), params).reshape(x.shape)


class _Slowed(torch.autograd.Function):
    """x, with its gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


@config
class AwareRule(Rule):
    """A rule whose layers are trained as it quantizes them."""

    scales: Scales

    def make(self, layer: Layer, seen: Seen | None) -> nn.Module:
        if self.transforms:
            return super().make(layer, seen)
        made = quantized(layer, None, self.act)
        inner: nn.Module = copy.deepcopy(layer)
        if self.weight is not None:
            inner = AwareLayer(layer, self.weight, self.scales)
        if not isinstance(made, PreparedLayer):
            return inner
        made.layer, made.format = inner, self.weight
        if isinstance(self.act, Static):
            made.act = AwareStatic(self.act).to(layer.weight.device)
        return made


@config
class QuantizeAware:
    """The change of a network that is trained as the plan of these rules quantizes it."""

    rules: tuple[Rule, ...]
    scales: Scales = "min_max"  # of weights; learned: of integers alone

    def __post_init__(self) -> None:
        for i, rule in enumerate(self.plan.rules):
            if rule.needs_data or rule.rounding != NEAREST:
                raise ValueError(
                    f"rules.{i}: training rounds to nearest and learns what data would tell: give "
                    "it no rounding, and no transforms that need data"
                )

    @property
    def plan(self) -> Plan:
        """What quantizes a network in the same way for good."""
        return Plan(rules=self.rules)

    def apply(self, net: nn.Module) -> nn.Module:
        """A copy of `net` to be trained. ValueError as in `Plan.apply`."""
        return Plan(rules=tuple(self._aware(rule) for rule in self.rules)).apply(net)

    def _aware(self, rule: Rule) -> AwareRule:
        own = {field.name: getattr(rule, field.name) for field in fields(rule)}
        return AwareRule(**own, scales=self.scales)


def packed_state(net: nn.Module) -> dict[str, Tensor]:
    """The state dict of what the plan would make of the trained weights: the same function."""
    state = net.state_dict()
    for name, layer in net.named_modules(remove_duplicate=False):
        if isinstance(layer, AwareLayer):
            prefix = f"{name}." if name else ""
            for key in layer.state_dict():
                del state[prefix + key]
            state |= {prefix + key: part for key, part in layer.parts().items()}
            if layer.bias is not None:
                state[f"{prefix}bias"] = layer.bias.detach()
    return state


def aware_layers(net: nn.Module) -> dict[str, AwareLayer]:
    """The layers that are trained through a format, by name."""
    return {name: m for name, m in net.named_modules() if isinstance(m, AwareLayer)}
