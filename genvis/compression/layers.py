"""One layer of a network at a time: what it sees, what it becomes under a rule, and that in its
place.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from genvis.compression.rows import Call
from genvis.quant.activations import StaticInput, observing
from genvis.quant.plan import Plan, Rule
from genvis.quant.seen import seeing
from genvis.random import HashKeys

Calls = Sequence[Call]


def layers_of(net: nn.Module) -> dict[str, nn.Module]:
    """The layers that a plan can quantize, by name. ValueError if it is quantized already."""
    everything = Plan(rules=(Rule(match=".*", weight=None),))
    return {name: net.get_submodule(name) for name in everything.assignments(net)}


@torch.no_grad()
def seen(
    net: nn.Module, names: Sequence[str], calls: Calls, tokens: int = 4096
) -> dict[str, list[Tensor]]:
    """What the named layers are called with: about `tokens` tokens of each."""
    with seeing(net, names, calls=len(calls), tokens=tokens) as found:
        for call in calls if names else ():
            net(*call)
    return found


def find_ranges(net: nn.Module, calls: Iterable[Call], *, seed: int = 0) -> None:
    """Give the static inputs of a network their ranges; they pass unquantized meanwhile.

    Observers that weigh have the diagonal of J^T J, of the output's error |J dx|^2 to first order:
    the mean of squared gradients of v^T y, where the signs v are random. Gradients of parameters
    are cleared.
    """
    inputs = [m for m in net.modules() if isinstance(m, StaticInput)]
    if not inputs:
        return
    weighs = any(m.config.observer.weighs for m in inputs)
    with observing(net), torch.set_grad_enabled(weighs):
        done = 0
        for call in calls:
            y = net(*call)
            if weighs:
                keys = HashKeys.of(seed, range(done, done + len(y))).fold("signs")
                signs = (keys.uniform(y.shape[1:]) < 0.5).to(y) * 2 - 1
                (signs * y).sum().backward()
            done += len(y)
    if weighs:
        net.zero_grad(set_to_none=True)


@contextmanager
def swapped(net: nn.Module, layer: nn.Module, other: nn.Module) -> Iterator[None]:
    """Inside, `other` is wherever `layer` is in the network."""
    places = [
        (parent, name)
        for parent in net.modules()
        for name, child in parent._modules.items()  # named_children would list it once
        if child is layer
    ]
    try:
        for parent, name in places:
            setattr(parent, name, other)
        yield
    finally:
        for parent, name in places:
            setattr(parent, name, layer)


def quantized(net: nn.Module, name: str, rule: Rule, calls: Calls) -> nn.Module:
    """What the named layer becomes under a rule, calibrated by these calls where that takes data.

    ValueError if the rule does not fit the layer.
    """
    layer: Any = net.get_submodule(name)
    made = rule.quantize(layer, seen(net, [name], calls)[name] if rule.needs_data else None).eval()
    with swapped(net, layer, made):
        find_ranges(net, calls)
    return made


def fits(rule: Rule, name: str) -> bool:
    """Whether a choice is for the layer of this name."""
    return re.fullmatch(rule.match, name) is not None


def check_choices(names: Sequence[str], choices: Mapping[str, Rule]) -> None:
    """ValueError names a choice that is for none of the layers, and a layer that has no choice."""
    for title, rule in choices.items():
        if not any(fits(rule, name) for name in names):
            raise ValueError(f"choices.{title}: {rule.match!r} matches none of the layers")
    for name in names:
        if not any(fits(rule, name) for rule in choices.values()):
            raise ValueError(f"choices: none is for the layer {name!r}")
