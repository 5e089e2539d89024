"""What each choice costs each layer: bytes of the file, bit operations, seconds on this machine.

Source: Ding et al. 2025, "Dissecting bit-level scaling laws in quantizing vision generative
models" (model bits and compute bits: multiply-adds times the bits of both factors).
Letters: L layers, C choices.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from genvis.compression.layers import Calls, fits, quantized
from genvis.quant.format import Format
from genvis.quant.plan import Rule
from genvis.quant.report import state_bytes
from genvis.quant.seen import seeing

FULL_BITS = 16  # of a number in full precision, in bit operations


def file_bytes(net: nn.Module, names: Sequence[str], choices: Mapping[str, Rule]) -> Tensor:
    """(L, C): the bytes of the tensors that the layer puts into a saved network."""

    def cost(name: str, rule: Rule) -> float:  # no data, on which no shape depends
        layer: Any = net.get_submodule(name)
        return state_bytes(rule.quantize(layer))

    return _table(names, choices, cost)


def bit_operations(
    net: nn.Module, names: Sequence[str], choices: Mapping[str, Rule], calls: Calls
) -> Tensor:
    """(L, C): multiply-adds of all calls times the bits of weight and of input."""
    operations = multiply_adds(net, names, calls)
    acts = [None if rule.act is None else rule.act.format for rule in choices.values()]
    weights = [rule.weight for rule in choices.values()]
    bits = [width(weight) * width(act) for weight, act in zip(weights, acts, strict=True)]
    rows = [[float(operations[name] * each) for each in bits] for name in names]
    return torch.tensor(rows, dtype=torch.float64)


def seconds(
    net: nn.Module,
    names: Sequence[str],
    choices: Mapping[str, Rule],
    calls: Calls,
    executed: Callable[[nn.Module], nn.Module] = lambda layer: layer,
    effort: float = 0.05,
) -> Tensor:
    """(L, C): the median time of the layer for its first inputs, timed for `effort` seconds each.

    executed: what runs a quantized layer; by default the layer itself, whose quantization is fake
    and saves no time.
    """
    from torch.utils.benchmark import Timer  # looks for a compiler, which only timing needs

    with torch.no_grad(), seeing(net, names, calls=1, tokens=sys.maxsize) as seen:
        net(*calls[0])
    inputs = {name: given[0] for name, given in seen.items() if given}

    def time(name: str, rule: Rule) -> float:
        if name not in inputs:
            return 0.0  # it is never called
        layer = executed(quantized(net, name, rule, calls))
        timer = Timer(
            "layer(x)",
            globals={"layer": layer, "x": inputs[name]},
            num_threads=torch.get_num_threads(),
        )
        with torch.no_grad():
            return timer.blocked_autorange(min_run_time=effort).median

    return _table(names, choices, time)


@torch.no_grad()
def multiply_adds(net: nn.Module, names: Sequence[str], calls: Calls) -> dict[str, int]:
    """Of each named Linear or Conv2d in all calls together."""
    found = dict.fromkeys(names, 0)

    def count(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, _: Any, out: Tensor) -> None:
            weight = layer.get_parameter("weight")
            found[name] += out.numel() * (weight.numel() // len(weight))

        return hook

    with ExitStack() as stack:
        for name in names:
            handle = net.get_submodule(name).register_forward_hook(count(name))
            stack.callback(handle.remove)
        for call in calls:
            net(*call)
    return found


def width(format: Format | None) -> int:
    """The bits of a number."""
    if format is None:
        return FULL_BITS
    bits: int = getattr(format, "bits", 0) or format.code_bits
    return bits


def _table(
    names: Sequence[str], choices: Mapping[str, Rule], cost: Callable[[str, Rule], float]
) -> Tensor:
    """A cost of every layer under every choice; 0 where a choice is not for the layer."""
    rows = []
    for name in names:
        row = []
        for rule in choices.values():
            try:
                row.append(float(cost(name, rule)) if fits(rule, name) else 0.0)
            except ValueError:  # it does not fit, which the sensitivities say too
                row.append(0.0)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)
