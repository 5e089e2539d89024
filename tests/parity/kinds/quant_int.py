"""Integer formats: weights by every rule and granularity, activations, observers, gradients."""

import re
from typing import Any

import torch
from golden_case import Case
from torch import Tensor, nn

from genvis.quant.activations import Dynamic
from genvis.quant.blocks import Group
from genvis.quant.integer import Integer
from genvis.quant.modules import quantized
from genvis.quant.observers import EMA, MinMax

EXACT = (0.0, 0.0)
SCALE = (0.0, 1e-6)


def check(case: Case) -> None:
    given = case.tensors("in/")
    if "calib" in given:
        activations(case, given)
    elif "w" in given:
        weights(case, given["w"])
    else:
        case.unclaimed(f"inputs {', '.join(given)}")


def weights(case: Case, w: Tensor) -> None:
    """Conv weights too: a group is of the last axis, whose blocks are those of the flat inputs."""
    official = case.spec["config"]
    axis = official["channel_axis"]
    groups = {"tensor": "tensor", "channel": None, "group": official["group_size"]}
    for name in sorted({key.rpartition("/")[0] for key in case.expected}):
        bits, rule, granularity = name.split("/")
        format = integer(bits, rule, groups[granularity])
        codes, params = format.encode(w.movedim(axis, 0))
        compare(case, name, format, codes.movedim(0, axis), params)
        if f"{name}/deq" in case.expected:
            case.compare(f"{name}/deq", format.decode(codes, params).movedim(0, axis), None, SCALE)


def integer(bits: str, rule: str, group: Group) -> Integer:
    fields: Any = {"rule": rule}
    return Integer(bits=int(bits.removeprefix("b")), group=group, **fields)


def compare(case: Case, name: str, format: Integer, codes: Tensor, params: Any) -> None:
    scale = format.step(params).flatten()
    zero = params["zero"].flatten() if "zero" in params else torch.zeros_like(scale)
    case.compare(f"{name}/q", codes, None, EXACT)
    case.compare(f"{name}/scale", scale, None, SCALE)
    case.compare(f"{name}/zero_point", zero, None, EXACT)


def activations(case: Case, given: dict[str, Tensor]) -> None:
    x, found = given["x"], {}
    observers = {"ema": EMA(momentum=case.spec["config"]["ema_momentum"]), "minmax": MinMax()}
    for name, observer in observers.items():
        seen = observer.see(given["calib"][0])
        for batch in given["calib"][1:]:
            seen = observer.join(seen, observer.see(batch))
        found[name] = seen
        for end, value in zip(("min", "max"), seen, strict=True):
            case.compare(f"observer/{name}/{end}", value[None], None, (0.0, 1e-6))
    for name in sorted({key.rpartition("/")[0] for key in case.expected}):
        kind, *rest = name.split("/")
        if kind == "static":
            bits, rule, observer_name = rest
            low, high = (end.reshape(1, 1) for end in found[observer_name])
            static(case, name, integer(bits, rule, "tensor"), low, high, given)
        elif kind == "dynamic_token":
            format = integer(*rest, None)
            codes, params = format.encode(x.flatten(0, -2))
            compare(case, name, format, codes.reshape(x.shape), params)
        elif kind == "linear":
            linear(case, rest, given)
        elif kind != "observer":
            case.unclaimed(f"outputs {name}")


def static(
    case: Case, name: str, format: Integer, low: Tensor, high: Tensor, given: dict[str, Tensor]
) -> None:
    params = format.fit(low, high)
    codes, _ = format.encode(given["x"], params)
    compare(case, name, format, codes, params)
    if f"{name}/grad_x" not in case.expected:
        return
    x = given["x"].clone().requires_grad_()
    scale = params["scale"].requires_grad_()
    format.fake(x, params).backward(given["grad_out"])
    assert x.grad is not None and scale.grad is not None  # noqa: PT018
    case.compare(f"{name}/grad_x", x.grad, None, EXACT)
    case.compare(f"{name}/grad_scale_unscaled", scale.grad.flatten(), None, (0.0, 1e-4))


def linear(case: Case, rest: list[str], given: dict[str, Tensor]) -> None:
    """The integer product of what both sides are coded as, and the layer that stands for it."""
    w, x = given["w"], given["x"]
    layer = nn.Linear(w.shape[1], w.shape[0])
    with torch.no_grad():
        layer.weight.copy_(w)
        layer.bias.copy_(given["bias"])
    if rest == ["fp"]:
        case.compare("linear/fp/y", layer(x), None, (1e-5, 1e-5))
        return
    bits, rule = rest
    sizes = re.fullmatch(r"w(\d)a(\d)", bits)
    assert sizes
    weight = integer(sizes[1], "sym_narrow", None)
    act = integer(sizes[2], rule, None)
    (qw, _), (qx, params) = weight.encode(w), act.encode(x.flatten(0, -2))
    acc = act.value(qx[:, None], params)[:, 0].long() @ qw.long().T
    case.compare(f"linear/{bits}/{rule}/acc", acc.reshape(*x.shape[:-1], -1), None, EXACT)
    y = quantized(layer, weight, Dynamic(format=act))(x)
    case.compare(f"linear/{bits}/{rule}/y", y, None, (1e-5, 1e-5))
