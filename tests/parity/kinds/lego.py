"""The released LEGO: every brick, skipped bricks, guidance, and a larger map than it was made for.

Its cases are of kind dimr, whose module calls this one.
"""

import torch
from einops import rearrange
from golden_case import Case
from torch import Tensor

from genvis.backbones.lego import LEGO
from genvis.integrations.official import from_official
from genvis.types import Cond


def check_lego(case: Case) -> None:
    net = from_official("lego", case.tensors("state/"), case.spec["config"])
    assert isinstance(net, LEGO)
    given = case.tensors("in/")
    x, t, cond = given["x"], given["c_noise"], labels(given.get("labels_onehot"), len(given["x"]))
    with torch.no_grad():
        out, free = net(x, t, cond), net(x, t, cond.dropped())
        case.compare("out", out)
        for k, brick in enumerate(net.config.bricks):
            estimate = net.stages(x, t, cond, k + 1)[-1]
            patches = rearrange(
                estimate, "b c (h r) (w s) -> (b h w) c r s", r=brick.side, s=brick.side
            )
            case.compare(f"brick{k}_patches", patches)
            case.compare(f"stop_after_brick{k}", estimate)
        if "out_uncond" in case.expected:
            case.compare("out_uncond", free)
        if "cfg" in case.expected:
            case.compare("cfg", free + scale(case) * (out - free))
        if "out_double_resolution" in case.expected:
            large = given["x_double"]
            rows = slice(len(large))
            case.compare("out_double_resolution", net(large, t[rows], first(cond, rows)))


def labels(onehot: Tensor | None, rows: int) -> Cond:
    """Rows of zeros are dropped ones."""
    if onehot is None:
        return Cond(drop=torch.ones(rows, dtype=torch.bool))
    return Cond(label=onehot.argmax(1), drop=onehot.sum(1) == 0)


def first(cond: Cond, rows: slice) -> Cond:
    return Cond(label=None if cond.label is None else cond.label[rows], drop=cond.drop[rows])


def scale(case: Case) -> float:
    """The guidance scale where the JSON gives it, else read off the recorded outputs."""
    if "cfg_scale" in case.spec:
        return case.spec["cfg_scale"]
    free = case.expected["out_uncond"]
    step, total = case.expected["out"] - free, case.expected["cfg"] - free
    return float((total * step).sum() / step.square().sum())
