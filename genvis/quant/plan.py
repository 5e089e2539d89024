"""Which layer gets which format: ordered rules on module names, applied to any network.

rules:
  - {match: 'final\\..*', weight: null}                      # stays in full precision
  - {match: '.*\\.mlp\\..*', weight: {name: int, bits: 4, group: 32}}
  - {match: '.*', weight: {name: int, bits: 8}}
"""

import copy
import re
from typing import Annotated

from torch import nn

from genvis.config import config
from genvis.quant import FORMATS, Format
from genvis.quant.modules import PACKED, PackedLayer


@config
class Rule:
    match: str  # a regular expression for the whole name of a module
    weight: Annotated[Format, FORMATS] | None  # None: full precision

    def __post_init__(self) -> None:
        try:
            re.compile(self.match)
        except re.error as error:
            raise ValueError(f"{self.match!r} is not a regular expression: {error}") from error


@config
class Plan:
    """The first rule that matches a layer decides; what none matches stays in full precision."""

    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError("rules must not be empty")

    def assignments(self, net: nn.Module) -> dict[str, Format | None]:
        """The format of every quantizable layer of `net` by name; None is full precision.

        ValueError if `net` is quantized already, or if a rule decides nothing: it matches no layer,
        or earlier rules match all of its layers.
        """
        names = list(_layers(net))
        hits = [{name for name in names if re.fullmatch(rule.match, name)} for rule in self.rules]
        taken: dict[str, Format | None] = {}
        for i, (rule, hit) in enumerate(zip(self.rules, hits, strict=True)):
            if not hit:
                known = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "") or "none"
                raise ValueError(
                    f"rules[{i}]: {rule.match!r} matches no Linear or Conv2d, of: {known}"
                )
            if hit <= taken.keys():
                raise ValueError(f"rules[{i}]: earlier rules take all that {rule.match!r} matches")
            taken |= dict.fromkeys(hit - taken.keys(), rule.weight)
        return {name: taken.get(name) for name in names}

    def apply(self, net: nn.Module) -> nn.Module:
        """A copy of `net` with the assigned layers packed; `net` keeps its own.

        The structure depends on that of `net` alone, so packed weights load strictly into what
        `apply` makes of a fresh net. ValueError as in `assignments`, or if a format does not fit.
        """
        layers, packed = _layers(net), {}
        for name, format in self.assignments(net).items():
            if format is None:
                continue
            try:
                packed[id(layers[name])] = PACKED[type(layers[name])](layers[name], format)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return copy.deepcopy(net, packed)  # deepcopy takes what its memo holds instead of copying


def _layers(net: nn.Module) -> dict[str, nn.Module]:
    """The quantizable layers by name; one used at several places has its first name."""
    modules = dict(net.named_modules())
    taken = next(
        (name for name, module in modules.items() if isinstance(module, PackedLayer)), None
    )
    if taken is not None:
        raise ValueError(f"net is quantized already: {taken!r} is packed")
    return {name: module for name, module in modules.items() if type(module) in PACKED}
