"""The released scan orders, Mamba mixers and ZigMa."""

import re

import torch
from golden_case import Case
from torch import Tensor

from genvis.checkpoint import load_state
from genvis.integrations.official import from_official
from genvis.nn.mamba import BiMamba, InOrder, Mamba
from genvis.nn.scan_orders import inverse, local, scan_orders
from genvis.types import Cond

EXACT = (0.0, 0.0)
MIXER = (2e-5, 1e-4)
ORDER = re.compile(r"(zigzag|sweep|jpeg|hilbert)(\d+)(_inverse|_as_released|)_N(\d+)")
WINDOWS = re.compile(r"local(\d+)_col([01])_flip([01])_N(\d+)")


def check(case: Case) -> None:
    arguments = case.spec.get("config", {})
    with torch.no_grad():
        if "embed_dim" in arguments:
            zigma(case)
        elif "d_model" in arguments:
            mixers(case)
        else:
            for name in case.expected:
                case.compare(name, order(case, name), tolerance=EXACT)


def order(case: Case, name: str) -> Tensor:
    if found := ORDER.fullmatch(name):
        rows, n = int(found[2]), int(found[4])
        paths = scan_orders(found[1], n, n)[:rows]
        # the released Hilbert orders are ranks: the inverse of the curve
        return inverse(paths) if found[3] else paths
    if found := WINDOWS.fullmatch(name):
        window, column, flip, n = map(int, found.groups())
        return local(n, n, window)[2 * column + flip]
    case.unclaimed(f"order {name}")
    raise AssertionError


def mixers(case: Case) -> None:
    """One mixer of each kind; the one-way one reads the tokens in several orders."""
    given, n = case.spec["config"], case.spec["config"]["grid"]
    rank = given["dt_rank"] if isinstance(given["dt_rank"], int) else None
    sizes = (given["d_model"], given["d_state"], given["d_conv"], given["expand"], rank)
    x = case.tensors("in/")["x"]
    for name in case.expected:
        one_way = name != "bidirectional"
        mixer = Mamba(*sizes) if one_way else BiMamba(*sizes)
        prefix = "zigzag" if one_way else "bidirectional"
        load_state(mixer, case.tensors(f"state/{prefix}."), "official mixer")
        if found := re.fullmatch(r"([a-z]+)_layer(\d+)", name):
            paths = scan_orders(found[1], n, n)
            case.compare(name, InOrder(mixer, paths[int(found[2]) % len(paths)])(x))
        elif name in ("bidirectional", "causal_raster"):
            case.compare(name, mixer(x), tolerance=MIXER)
        else:
            case.unclaimed(f"output {name}")


def zigma(case: Case) -> None:
    net = from_official("zigma", case.tensors("state/"), case.spec["config"])
    given = case.tensors("in/")
    y = given.get("y")
    cond = Cond(text=y) if y is not None and y.is_floating_point() else Cond(label=y)
    case.compare("out", net(given["x"], 1000 * given["t"], cond))
