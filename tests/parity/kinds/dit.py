"""The released DiT: its embeddings, every block, its output, and its three-channel guidance."""

import torch
from golden_case import Case
from torch import Tensor

from genvis.backbones.dit import DiT
from genvis.integrations.official import from_official
from genvis.nn.embeddings import sinusoids
from genvis.processes.denoiser import Denoiser
from genvis.processes.guidance import Guided
from genvis.processes.linear import Linear
from genvis.processes.predictions import Noise
from genvis.types import Cond

FORWARD = (2e-5, 1e-4)


def check(case: Case) -> None:
    if case.spec.get("cls") != "DiT":
        case.unclaimed(f"class {case.spec.get('cls')}")
    official, given = case.spec["config"], case.tensors("in/")
    net = from_official("dit", case.tensors("state/"), official)
    assert isinstance(net, DiT)
    with torch.no_grad():
        for name, output in forward(net, given).items():
            if name in case.expected:
                case.compare(name, output, tolerance=FORWARD)
        if "cfg_out" in case.expected:
            guided = guide(net, given, case.spec["cfg_scale"])
            case.compare("cfg_out", guided, tolerance=FORWARD)
    for pattern in ("p_sample_loop", "ddim_loop*"):
        if any(name.startswith(pattern.rstrip("*")) for name in case.expected):
            case.omit(pattern, "needs the 1,000-beta process, which is not built yet")


def forward(net: DiT, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every intermediate output by its recorded name."""
    seen: dict[str, Tensor] = {}
    parts = {"t_emb": net.t_embedder, "y_emb": net.y_embedder, "patch_tokens": net.x_embedder}
    parts |= {f"block{i}": block for i, block in enumerate(net.blocks)}
    handles = [
        part.register_forward_hook(lambda *call, name=name: seen.update({name: call[2]}))
        for name, part in parts.items()
    ]
    cond = Cond(label=given["y"])
    seen["y_pred"] = net(given["x"], given["t"], cond)
    for handle in handles:
        handle.remove()
    if "t_frac" in given:
        seen["y_pred_t_frac"] = net(given["x"], given["t_frac"], cond)
    return {**seen, "t_freq": sinusoids(given["t"], net.t_embedder.frequencies)}


def guide(net: DiT, given: dict[str, Tensor], scale: float) -> Tensor:
    """Both halves of the released `forward_with_cfg`: the guided channels are shared, the rest of
    the second half is unconditional. The second half of the input is ignored there.
    """
    n, config = len(given["cfg_x"]) // 2, net.config
    x, t, cond = given["cfg_x"][:n], given["cfg_t"][:n].double() / 1000, Cond(given["cfg_y"][:n])
    prediction = Noise(time_scale=1000.0, learned_variance=config.learned_variance)
    denoise = Denoiser(net, Linear(), prediction)
    with_cond = Guided(denoise, scale, channels=3)(x, t, cond)
    without = denoise(x, t, cond.dropped())
    halves = [
        torch.cat(
            [with_cond.eps[:, :3], rest.eps[:, 3:], *([] if rest.var is None else [rest.var])], 1
        )
        for rest in (with_cond, without)
    ]
    return torch.cat(halves)
