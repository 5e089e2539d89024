"""Scaled long skips: the released U-ViT in its five modes, and UNets of diffusers with hooks."""

import pytest
import torch
from golden_case import Case
from torch import Tensor, nn

from genvis.backbones.uvit import UViT
from genvis.checkpoint import load_state
from genvis.integrations.official import from_official
from genvis.integrations.skips import scale_skips, skip_channels
from genvis.nn.skips import Constant, InverseSqrt2, PerChannel, SkipScale, Unscaled
from genvis.types import Cond


def check(case: Case) -> None:
    if "modes" in case.spec:
        check_uvit(case)
    elif "gate_reduction" in case.spec:
        check_unet(case)
    else:
        case.unclaimed("neither the modes of a U-ViT nor the gates of a UNet")


def check_uvit(case: Case) -> None:
    given, state = case.tensors("in/"), case.tensors("state/")
    cond = Cond(label=given.get("y"), text=given.get("context"))
    common = {key: value for key, value in state.items() if "/" not in key}
    for number, mode in case.spec["modes"].items():
        gates = case.tensors(f"state/{mode.removeprefix('learnable_')}/")
        official = {**case.spec["config"], "scalelong": int(number), "kappa": case.spec["kappa"]}
        net = from_official("uvit", {**common, **gates}, official)
        assert isinstance(net, UViT)
        for name, output in uvit_outputs(net, given["x"], given["t"], cond).items():
            full = f"out_{mode}" if name == "out" else f"{mode}_{name}"
            for recorded in {full, name} & case.expected.keys():  # in blocks are the same in all
                case.compare(recorded, output)


def uvit_outputs(net: UViT, x: Tensor, t: Tensor, cond: Cond) -> dict[str, Tensor]:
    """The output, those of the in blocks, and the scaled skips that enter the out blocks."""
    seen: dict[str, Tensor] = {}
    for j, (into, out) in enumerate(zip(net.in_blocks, net.out_blocks, strict=True)):
        into.register_forward_hook(lambda *call, j=j: seen.update({f"in_block{j}": call[2]}))
        out.register_forward_pre_hook(
            lambda block, args, j=j: seen.update({f"skip_into_out_block{j}": args[1]})
        )
    with torch.no_grad():
        seen["out"] = net(x, t, cond)
    return seen


def check_unet(case: Case) -> None:
    diffusers = pytest.importorskip("diffusers")
    given, state = case.tensors("in/"), case.tensors("state/")
    kind = "UNet2DConditionModel" if "context" in given else "UNet2DModel"
    unet = getattr(diffusers, kind).from_config(case.spec["config"]).eval()
    load_state(unet, {k: v for k, v in state.items() if not k.startswith("gates.")}, kind)
    plain, keys = forward(unet, given), set(unet.state_dict())
    shapes = case.spec["skip_shapes_from_outermost"]
    assert skip_channels(unet) == tuple(shapes[str(i + 1)][0] for i in range(len(shapes)))

    choices: dict[str, SkipScale] = {
        "none": Unscaled(),
        "inv_sqrt2": InverseSqrt2(),
        "constant": Constant(kappa=case.spec["kappa"]),
        "learnable_per_skip": PerChannel(reduction=case.spec["gate_reduction"]),
    }
    gates = {
        key.removeprefix("gates.").replace(".fc", ".layer"): value
        for key, value in state.items()
        if key.startswith("gates.")
    }
    for name, choice in choices.items():
        scaled = scale_skips(unet, choice)
        if isinstance(choice, PerChannel):
            load_state(unet.skip_gates, gates, "gates")
        else:
            assert set(unet.state_dict()) == keys
        case.compare(f"out_{name}", forward(unet, given))
        scaled.remove()
        assert set(unet.state_dict()) == keys
    assert torch.equal(forward(unet, given), plain)


def forward(unet: nn.Module, given: dict[str, Tensor]) -> Tensor:
    names = {"context": "encoder_hidden_states", "y": "class_labels"}
    rest = {names[name]: given[name] for name in names if name in given}
    with torch.no_grad():
        return unet(given["x"], given["t"], **rest).sample
