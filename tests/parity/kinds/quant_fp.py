"""Floating formats: bare casts, scaled, microscaling blocks, NVFP4."""

import re
from typing import Any

import torch
from golden_case import Case
from torch import Tensor

from genvis.config import ConfigError
from genvis.quant import ELEMENTS
from genvis.quant.blocks import Group, split
from genvis.quant.floating import Float, Floating
from genvis.quant.minifloat import Minifloat
from genvis.quant.mx import MX
from genvis.quant.nvfp4 import NVFP4

EXACT = (0.0, 0.0)
CLOSE = (0.0, 1e-6)


def check(case: Case) -> None:
    names = case.expected
    if any(name.endswith("/grid") for name in names):
        casts(case)
    elif any(name.endswith("/e8m0") for name in names):
        mx(case)
    elif any(name.endswith("/block_scale") for name in names):
        nvfp4(case)
    elif any(name.endswith("/deq") for name in names):
        scaled(case)
    else:
        case.unclaimed(f"outputs {', '.join(names)}")


def element(name: str) -> Minifloat:
    """By its name: one of the table, or exmy with a number for every code."""
    short = name.removesuffix("fn")
    try:
        return ELEMENTS.resolve(short)
    except ConfigError:
        found = re.fullmatch(r"e(\d)m(\d)", short)
        assert found, name
        return Minifloat(exponent=int(found[1]), mantissa=int(found[2]))


def described(official: dict[str, Any]) -> Minifloat:
    """By its widths and the number of its finite codes."""
    e, m = official["exponent_bits"], official["mantissa_bits"]
    missing = 2 ** (e + m) - official["positive_values"]
    specials: Any = {0: "none", 1: "nan", 2**m: "ieee"}[missing]
    return Minifloat(exponent=e, mantissa=m, specials=specials)


def casts(case: Case) -> None:
    for name, official in case.spec["config"].items():
        number = described(official)
        assert number.max == official["max"]
        assert number.grid()[1] == official["min_subnormal"]
        case.compare(f"{name}/grid", number.grid(), None, EXACT)
        codes = number.round(case.tensors("in/")[f"{name}/x"])
        case.compare(f"{name}/y", number.value(codes), None, EXACT)


def scaled(case: Case) -> None:
    w = case.tensors("in/")["w"]
    groups: dict[str, Group] = {"tensor": "tensor", "channel": None}
    groups["group"] = (case.spec.get("config") or {}).get("group_size")
    scales: Any = {"amax": "float32", "pow2_ceil": "power_of_two"}
    for name in sorted({key.rpartition("/")[0] for key in case.expected}):
        number, granularity, rule = name.split("/")
        format = Float(element=element(number), group=groups[granularity], scale=scales[rule])
        codes, params = format.encode(w)
        case.compare(f"{name}/scale", format.step(params).flatten(), None, CLOSE)
        found = format.decode(codes, params)
        case.compare(f"{name}/deq", found, None, CLOSE, slack=ties(format, w, params))


def mx(case: Case) -> None:
    """The byte of a block of zeros is not compared, as the case says."""
    x, zero = case.tensors("in/")["x"], case.expected["zero_block"].bool()
    size = case.spec["config"]["block"]
    case.compare("zero_block", (x.unflatten(-1, (-1, size)) == 0).all(-1).int(), None, EXACT)
    for name in sorted({key.rpartition("/")[0] for key in case.expected if "/" in key}):
        number, rule = name.split("/")
        chosen: Any = {"rule": rule}
        format = MX(element=element(number), group=size, **chosen)
        codes, params = format.encode(x.flatten(0, -2))
        byte = params["exponent"].reshape(zero.shape)
        wanted = case.expected[f"{name}/e8m0"]
        case.compare(f"{name}/e8m0", torch.where(zero, wanted, byte), None, EXACT)
        case.compare(f"{name}/deq", format.decode(codes, params).reshape(x.shape), None, EXACT)


def nvfp4(case: Case) -> None:
    x = case.tensors("in/")["x"]
    for level in sorted({key.partition("/")[0] for key in case.expected}):
        format = NVFP4(tensor_scale={"one_level": False, "two_level": True}[level])
        codes, params = format.encode(x)
        plain = NVFP4(tensor_scale=False)
        case.compare(f"{level}/block_scale", plain.step(params), None, EXACT)
        if format.tensor_scale:
            case.compare(f"{level}/tensor_scale", params["tensor_scale"].flatten(), None, CLOSE)
        found = format.decode(codes, params)
        case.compare(f"{level}/deq", found, None, CLOSE, slack=ties(format, x, params))


def ties(format: Floating, x: Tensor, params: Any) -> Tensor:
    """One step of the grid for numbers within 1e-6 of a tie, which multiplying by 1 / s moves."""
    grid = format.element.grid()
    between, gaps = (grid[1:] + grid[:-1]) / 2, grid.diff()
    step = format.step(params)[..., None]
    v = (split(x, format.group) / step).abs()
    near = ((v[..., None] - between).abs() <= 1e-6 * between).to(gaps) * gaps
    return (near.amax(-1) * step).reshape(x.shape)
