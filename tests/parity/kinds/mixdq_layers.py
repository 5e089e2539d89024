"""MixDQ's quantizers, and its layers that keep a token or parts of the inputs apart."""

import re
from typing import Any

import torch
from golden_case import Case
from torch import Tensor, nn

from genvis.quant.activations import Static, observing
from genvis.quant.integer import Integer
from genvis.quant.observers import EMA
from genvis.quant.plan import Rule
from genvis.quant.transform import Layer, Transform
from genvis.quant.transforms.keep_tokens import KeepTokens
from genvis.quant.transforms.split import Split

SCALE, EXACT = (0.0, 1e-6), (0.0, 0.0)


def quantizers(case: Case) -> None:
    given, bits = case.tensors("in/"), sorted(bits_of(case, r"out/w/b(\d)/deq"))
    found = [Integer(bits=b).encode(given["w"]) for b in bits]
    scales = [Integer(bits=b).step(params) for b, (_, params) in zip(bits, found, strict=True)]
    case.compare("w/delta_list", torch.stack(scales), None, SCALE)
    case.compare("w/zero_point_list", torch.zeros(len(bits), len(given["w"]), 1), None, EXACT)
    for b, (codes, params) in zip(bits, found, strict=True):
        case.compare(f"w/b{b}/deq", Integer(bits=b).decode(codes, params), None, SCALE)
    activations(case, given, bits)


def activations(case: Case, given: dict[str, Tensor], bits: list[int]) -> None:
    """The released class with several candidate numbers of bits joins every batch once for each,
    and takes the scale of each from the range as it then is.
    """
    observer, once, often, ranges = EMA(), None, None, {}
    for batch in given["calib"]:
        seen = observer.see(batch)
        once = seen if once is None else observer.join(once, seen)
        for b in bits:
            often = seen if often is None else observer.join(often, seen)
            ranges[b] = often
    assert once is not None and often is not None  # noqa: PT018
    for name, end in zip(("x_min", "x_max"), often, strict=True):
        case.compare(f"a/{name}", end[None], None, SCALE)
    steps, zeros = [], []
    for b in bits:
        format = Integer(bits=b, rule="asym", group="tensor")
        params = format.fit(*(end.reshape(1, 1) for end in ranges[b]))
        codes, _ = format.encode(given["x"], params)
        case.compare(f"a/b{b}/deq", format.decode(codes, params), None, SCALE)
        steps.append(params["scale"])
        zeros.append(params["zero"])
    shape = case.expected["a/delta_list"].shape
    case.compare("a/delta_list", torch.cat(steps).reshape(shape), None, SCALE)
    case.compare("a/zero_point_list", torch.cat(zeros).reshape(shape), None, EXACT)
    format = Integer(bits=8, rule="asym", group="tensor")
    params = format.fit(*(end.reshape(1, 1) for end in once))
    shape = case.expected["a_single/delta"].shape
    case.compare("a_single/delta", params["scale"].reshape(shape), None, SCALE)
    case.compare("a_single/zero_point", params["zero"].reshape(shape), None, EXACT)


def first_token(case: Case) -> None:
    text, official = case.tensors("in/")["text"], case.spec["config"]
    weight, act = formats(official["weight"], official["activation"])
    for name in sorted({key.partition("/")[0] for key in case.expected}):
        layer = like(case.tensors(f"state/{name}."))
        case.compare(f"{name}/fp", layer(text))
        plain = calibrated(layer, (), weight, act, text)
        aware = calibrated(layer, (KeepTokens(),), weight, act, text)
        case.compare(f"{name}/plain_w8a8", plain(text))
        case.compare(f"{name}/bos_aware_w8a8", aware(text))
        case.compare(f"{name}/bos_row", aware.layer.exact.rows[None])
        kept = aware.layer.layer.act
        for key, module in (("plain", plain.act), ("bos_aware", kept)):
            case.compare(f"{name}/act_delta_{key}", delta(module).reshape(1, 1, 1))


def shortcut(case: Case) -> None:
    x, said = case.tensors("in/")["x"], case.spec["shapes"]
    at, padding = (
        int(re.search(pattern, said)[1])  # type: ignore[index]
        for pattern in (r"split at channel (\d+)", r"padding (\d+)")
    )
    layer = like(case.tensors("state/"), padding)
    weight, act = formats(*case.spec["config"].split(",")[:2])
    case.compare("fp", layer(x))
    case.compare("joint", calibrated(layer, (), weight, act, x)(x))
    apart = calibrated(layer, (Split(at=(at,)),), weight, act, x)
    case.compare("split", apart(x))
    for name, part in zip(("act_delta", "act_delta_0"), apart.layers, strict=True):
        case.compare(name, delta(part.act).reshape(1))


def formats(weight: str, act: str) -> tuple[Integer, Static]:
    """From texts such as "8 bit symmetric per channel" and "A8 asymmetric per tensor min-max"."""
    bits = [int(re.search(r"\d+", text)[0]) for text in (weight, act)]  # type: ignore[index]
    words = (" symmetric", "per channel"), ("asymmetric", "per tensor")
    for text, wanted in zip((weight, act), words, strict=True):
        assert all(word in text for word in wanted), text
    return Integer(bits=bits[0]), Static(format=Integer(bits=bits[1], rule="asym", group="tensor"))


def like(state: dict[str, Tensor], padding: int = 0) -> Layer:
    weight, bias = state["weight"], state.get("bias")
    outputs, inputs, *kernel = weight.shape
    layer: Any = nn.Linear(inputs, outputs, bias=bias is not None)
    if kernel:
        size = kernel[0], kernel[1]
        layer = nn.Conv2d(inputs, outputs, size, padding=padding, bias=bias is not None)
    layer.load_state_dict(state)
    return layer


def calibrated(
    layer: Layer, transforms: tuple[Transform, ...], weight: Integer, act: Static, x: Tensor
) -> Any:
    rule = Rule(match=".*", weight=weight, act=act, transforms=transforms)
    made = rule.quantize(layer, [x])
    with observing(made):
        made(x)
    return made


def delta(module: Any) -> Tensor:
    low, high = module.range.reshape(2, 1, 1)
    return module.config.format.fit(low, high)["scale"]


def bits_of(case: Case, pattern: str) -> set[int]:
    found = (re.fullmatch(pattern, name) for name in case.stored)
    return {int(match[1]) for match in found if match}
