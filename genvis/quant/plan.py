"""Which layer gets which formats: ordered rules on module names, applied to any network.

rules:
  - {match: 'final\\..*', weight: null}                      # stays in full precision
  - match: '.*\\.mlp\\..*'                                   # 4-bit weights, 8-bit activations
    weight: {name: int, bits: 4, group: 32}
    act: {name: dynamic, format: {name: int, bits: 8, rule: asym}}
    transforms: [{name: smooth, alpha: 0.5}, rotate]         # before anything is rounded
    rounding: gptq
  - {match: '.*', weight: {name: int, bits: 8}}
"""

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

from torch import nn

from genvis.config import config
from genvis.quant import ACTIVATIONS, FORMATS, ROUNDINGS, TRANSFORMS
from genvis.quant.activations import Activation
from genvis.quant.format import Format
from genvis.quant.modules import PACKED, Calibrated, quantized, quantized_layers
from genvis.quant.rounding import NEAREST, Rounding
from genvis.quant.transform import Layer, Seen, Transform


@config
class Rule:
    match: str  # a regular expression for the whole name of a module
    weight: Annotated[Format, FORMATS] | None  # None: full precision
    act: Annotated[Activation, ACTIVATIONS] | None = None  # of the layer's input
    # what is done before anything is rounded, from the outside in
    transforms: tuple[Annotated[Transform, TRANSFORMS], ...] = ()
    rounding: Annotated[Rounding, ROUNDINGS] = NEAREST  # of the weight

    def __post_init__(self) -> None:
        try:
            re.compile(self.match)
        except re.error as error:
            raise ValueError(f"{self.match!r} is not a regular expression: {error}") from error
        if self.weight is None and self.rounding != NEAREST:
            raise ValueError("rounding is of weights in a format, and weight is null")

    @property
    def changes(self) -> bool:
        """Whether a layer under this rule is another one."""
        return self.weight is not None or self.act is not None or bool(self.transforms)

    @property
    def needs_data(self) -> bool:
        """Whether the layer depends on what it is called with."""
        return self.rounding.needs_data or any(step.needs_data for step in self.transforms)

    def quantize(self, layer: Layer, seen: Seen | None = None) -> nn.Module:
        """The layer under this rule; `layer` keeps its own. `seen`: the inputs of its calls.

        Without them, where `needs_data`, it is for loading and raises at its first use. ValueError
        if a format or a transformation does not fit.
        """
        if not self.needs_data:
            return self.make(layer, None)
        if seen is not None and not seen:
            raise ValueError("nothing was seen of its inputs, which its rule needs")
        return Calibrated(self.make(layer, seen), seen is not None, layer.weight.device)

    def make(self, layer: Layer, seen: Seen | None) -> nn.Module:
        """`quantize` from inside a transformation: see `genvis.quant.transform.Rest`."""
        if self.transforms:
            first, *others = self.transforms
            return first.apply(layer, replace(self, transforms=tuple(others)), seen)
        return quantized(layer, self.weight, self.act, self.rounding, seen)


@config
class Plan:
    """The first rule that matches a layer decides; what none matches stays in full precision."""

    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError("rules must not be empty")

    def assignments(self, net: nn.Module) -> dict[str, Rule | None]:
        """The rule of every quantizable layer of `net` by name; None where no rule matches.

        ValueError if `net` is quantized already, or if a rule decides nothing: it matches no layer,
        or earlier rules match all of its layers.
        """
        names = list(_layers(net))
        hits = [{name for name in names if re.fullmatch(rule.match, name)} for rule in self.rules]
        taken: dict[str, Rule] = {}
        for i, (rule, hit) in enumerate(zip(self.rules, hits, strict=True)):
            if not hit:
                known = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "") or "none"
                raise ValueError(
                    f"rules[{i}]: {rule.match!r} matches no Linear or Conv2d, of: {known}"
                )
            if hit <= taken.keys():
                raise ValueError(f"rules[{i}]: earlier rules take all that {rule.match!r} matches")
            taken |= dict.fromkeys(hit - taken.keys(), rule)
        return {name: taken.get(name) for name in names}

    def needing_data(self, net: nn.Module) -> list[str]:
        """The layers whose inputs `apply` must have seen. ValueError as in `assignments`."""
        chosen = self.assignments(net).items()
        return [name for name, rule in chosen if rule is not None and rule.needs_data]

    def apply(self, net: nn.Module, seen: Mapping[str, Seen] | None = None) -> nn.Module:
        """A copy of `net` with the assigned layers quantized; `net` keeps its own.

        seen: what the layers of `needing_data` were called with (`genvis.quant.seen`). Without it
        those are for loading, and raise at their first use.

        The structure depends on that of `net` alone, so saved weights load strictly into what
        `apply` makes of a fresh net. Static inputs have no range yet: see `activations.observing`.
        ValueError as in `assignments`, or if a format does not fit.
        """
        layers, changed = _layers(net), {}
        for name, rule in self.assignments(net).items():
            if rule is None or not rule.changes:
                continue
            layer = layers[name]
            inputs = None if seen is None or not rule.needs_data else seen.get(name, ())
            try:
                changed[id(layer)] = rule.quantize(layer, inputs)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return copy.deepcopy(net, changed)  # deepcopy takes what its memo holds instead of copying


def _layers(net: nn.Module) -> dict[str, Layer]:
    """The quantizable layers by name; one used at several places has its first name."""
    if (done := next(iter(quantized_layers(net)), None)) is not None:
        raise ValueError(f"net is quantized already: {done!r} is")
    # exact types, which the table says again to the type checker
    return {
        name: module
        for name, module in net.named_modules()
        if type(module) in PACKED and isinstance(module, nn.Linear | nn.Conv2d)
    }
