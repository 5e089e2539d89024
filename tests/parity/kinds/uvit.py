"""The released U-ViT, with labels, text or neither: every block and the output."""

import torch
from golden_case import Case
from torch import Tensor, nn

from genvis.backbones.uvit import UViT
from genvis.integrations.official import from_official
from genvis.types import Cond


def check(case: Case) -> None:
    if case.spec.get("cls") not in ("UViT", "UViT (text)"):
        case.unclaimed(f"class {case.spec.get('cls')}")
    given = case.tensors("in/")
    net = from_official("uvit", case.tensors("state/"), case.spec["config"])
    assert isinstance(net, UViT)
    cond = Cond(label=given.get("y"), text=given.get("context"))
    with torch.no_grad():
        for name, output in forward(net, given["x"], given["t"], cond).items():
            if name in case.expected:
                case.compare(name, output)


def blocks(net: UViT) -> dict[str, nn.Module]:
    named = {"mid_block": net.mid_block}
    for side in ("in_block", "out_block"):
        named |= {f"{side}{i}": b for i, b in enumerate(net.get_submodule(f"{side}s").children())}
    return named


def forward(net: UViT, x: Tensor, t: Tensor, cond: Cond) -> dict[str, Tensor]:
    """The output and those of every block by their recorded names."""
    seen: dict[str, Tensor] = {}
    handles = [
        block.register_forward_hook(lambda *call, name=name: seen.update({name: call[2]}))
        for name, block in blocks(net).items()
    ]
    seen["out"] = net(x, t, cond)
    for handle in handles:
        handle.remove()
    return seen
