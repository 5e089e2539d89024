"""Networks of several resolutions: DiMR, its time-dependent norms, and LEGO."""

import torch
from golden_case import Case

from genvis.backbones.dimr import DiMR
from genvis.integrations.official import from_official
from genvis.nn.time_norms import TimeLayerNorm, TimeRMSNorm
from genvis.objectives.stages import shrink, stage_errors
from genvis.types import Cond
from kinds.lego import check_lego


def check(case: Case) -> None:
    if "LEGO" in case.spec["source"]:
        check_lego(case)
    elif case.spec.get("cls") == "MRModel":
        check_dimr(case)
    elif "cls" not in case.spec and "dim" in case.spec:
        check_norms(case)
    else:
        case.unclaimed(f"class {case.spec.get('cls')}")


def check_norms(case: Case) -> None:
    """Each norm by the parameters that it has."""
    given = case.tensors("in/")
    for name in case.expected:
        state = case.tensors(f"state/{name}.")
        width = next(iter(state.values())).shape[0]
        if "scale.param0" in state:
            norm = TimeRMSNorm(width, bias="offset.param0" in state)
        else:
            norm = TimeLayerNorm(width)
        norm.load_state_dict(state)
        case.compare(name, norm(given[f"{name}_x"], given["log_snr"] / 4))


def check_dimr(case: Case) -> None:
    """Every stage's prediction, the targets of each resolution, and the released loss."""
    net, given = (
        from_official("dimr", case.tensors("state/"), case.spec["config"]),
        case.tensors("in/"),
    )
    assert isinstance(net, DiMR)
    x, cond = given["x"], Cond(label=given.get("y"))
    t = 125 * (given["log_snr"] + 4)  # the released name for 8 t / 1000 - 4
    with torch.no_grad():
        outputs = net.stages(x, t, cond)
        for k, output in enumerate(outputs):
            case.compare(f"stage{k}", output)
        if "same_time_stage0" in case.expected:
            for k, output in enumerate(net.stages(x, t[:1].expand(len(x)), cond)):
                case.compare(f"same_time_stage{k}", output)
    for name in [name for name in case.expected if name.startswith("target_")]:
        case.compare(name, shrink(given["eps"], int(name.removeprefix("target_"))))
    if "loss" in case.expected:
        released = [4.0**-k for k in reversed(range(len(outputs)))]  # 1/4 and 1 for two stages
        coefficients = torch.tensor(case.spec.get("loss_coeffs", released))
        case.compare("loss", stage_errors(outputs, given["eps"]) @ coefficients)
