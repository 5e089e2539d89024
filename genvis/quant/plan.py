"""Which layer gets which formats: ordered rules on module names, applied to any network.

rules:
  - {match: 'final\\..*', weight: null}                      # stays in full precision
  - match: '.*\\.mlp\\..*'                                   # 4-bit weights, 8-bit activations
    weight: {name: int, bits: 4, group: 32}
    act: {name: dynamic, format: {name: int, bits: 8, rule: asym}}
    rotate: true
  - {match: '.*', weight: {name: int, bits: 8}}
"""

import copy
import re
from typing import Annotated

from torch import nn

from genvis.config import config
from genvis.quant import ACTIVATIONS, FORMATS
from genvis.quant.activations import Activation
from genvis.quant.format import Format
from genvis.quant.modules import PACKED, quantized, quantized_layers


@config
class Rule:
    match: str  # a regular expression for the whole name of a module
    weight: Annotated[Format, FORMATS] | None  # None: full precision
    act: Annotated[Activation, ACTIVATIONS] | None = None  # of the layer's input
    rotate: bool = False  # whether inputs are rotated before weight and act are quantized

    def __post_init__(self) -> None:
        try:
            re.compile(self.match)
        except re.error as error:
            raise ValueError(f"{self.match!r} is not a regular expression: {error}") from error

    @property
    def changes(self) -> bool:
        """Whether a layer under this rule is another one."""
        return self.weight is not None or self.act is not None or self.rotate


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

    def apply(self, net: nn.Module) -> nn.Module:
        """A copy of `net` with the assigned layers quantized; `net` keeps its own.

        The structure depends on that of `net` alone, so saved weights load strictly into what
        `apply` makes of a fresh net. Static inputs have no range yet: see `activations.observing`.
        ValueError as in `assignments`, or if a format does not fit.
        """
        layers, changed = _layers(net), {}
        for name, rule in self.assignments(net).items():
            if rule is None or not rule.changes:
                continue
            layer = layers[name]
            try:
                changed[id(layer)] = quantized(layer, rule.weight, rule.act, rule.rotate)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return copy.deepcopy(net, changed)  # deepcopy takes what its memo holds instead of copying


def _layers(net: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """The quantizable layers by name; one used at several places has its first name."""
    if (done := next(iter(quantized_layers(net)), None)) is not None:
        raise ValueError(f"net is quantized already: {done!r} is")
    # exact types, which the table says again to the type checker
    return {
        name: module
        for name, module in net.named_modules()
        if type(module) in PACKED and isinstance(module, nn.Linear | nn.Conv2d)
    }
