"""The released DiT: its embeddings, every block, its output, and its three-channel guidance; and
the released PixArt on texts.
"""

from dataclasses import dataclass

import torch
from golden_case import Case
from latents import Latents
from recorded import Recorded
from torch import Tensor

from genvis.backbones.dit import DiT
from genvis.integrations.official import from_official
from genvis.nn.embeddings import sinusoids
from genvis.processes.betas import Betas
from genvis.processes.denoiser import Denoiser
from genvis.processes.guidance import Guided
from genvis.processes.predictions import Noise
from genvis.samplers.diffusion import DiffusionSampler
from genvis.samplers.generate import run
from genvis.samplers.grids import Respaced
from genvis.samplers.stochastic import DDIM, Ancestral
from genvis.types import Cond, Estimate

FORWARD = (2e-5, 1e-4)
LOOP = (5e-2, 1e-3)
BETAS = Betas()


def check(case: Case) -> None:
    if "PixArt" in case.spec.get("source", ""):
        return check_pixart(case)
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
        for name in sorted(case.expected):
            if "_loop" in name:
                sampled = loop(net, given, name, case.spec["cfg_scale"])
                kept = case.expected[name][: len(sampled)]  # the released script drops the rest
                case.compare(name, sampled, kept, tolerance=LOOP)


def check_pixart(case: Case) -> None:
    """With the recorded masks, without, and on the null caption."""
    given = case.tensors("in/")
    net = from_official("pixart", case.tensors("state/"), case.spec["config"])
    x, t, text = given["x"], given["t"], given["y"].squeeze(1)
    conds = {"out_unmasked": Cond(text=text), "out_null_caption": Cond(text=text).dropped()}
    if "mask" in given:
        conds["out_masked"] = Cond(text=text, text_mask=given["mask"].flatten(1).bool())
    with torch.no_grad():
        for name in sorted(case.expected):
            if name in conds:
                case.compare(name, net(x, t, conds[name]))


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


@dataclass(frozen=True)
class Halves:
    """The released network as an estimate of everything it puts out: noise, then raw variance. A
    condition without a negative is the free one and has times of its own.
    """

    net: DiT
    free_t: Tensor
    process: Betas = BETAS

    def evaluations(self, t: Tensor) -> int:
        return 1

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Estimate:
        out = self.net(x, self.free_t if cond.negative is None else t, cond)
        return Estimate(out, out)


def guide(net: DiT, given: dict[str, Tensor], scale: float) -> Tensor:
    """Both halves of the released `forward_with_cfg`: the first three channels of the output are
    guided and shared, the rest is each half's own. The second half of the input is ignored there.
    """
    n = len(given["cfg_x"]) // 2
    x, (t, free_t), (y, free_y) = (
        given["cfg_x"][:n],
        *(given[k].split(n) for k in ("cfg_t", "cfg_y")),
    )
    denoise = Halves(net, free_t)
    cond = Cond(label=y, negative=Cond(label=free_y))
    guided = Guided(denoise, scale, channels=3)(x, t, cond).eps
    free = denoise(x, t, cond.dropped()).eps
    return torch.cat([guided, torch.cat([guided[:, :3], free[:, 3:]], dim=1)])


def loop(net: DiT, given: dict[str, Tensor], name: str, scale: float) -> Tensor:
    """The released sampling loop: 1,000 linear betas respaced, three channels guided, no clipping.

    Upstream runs 2B rows and keeps the first B, whose conditional half these are.
    """
    noises = given["loop_noises"]
    n = noises.shape[1] // 2
    learned = net.config.learned_variance
    denoise = Guided(Denoiser(net, BETAS, Noise(learned_variance=learned)), scale, channels=3)
    eta = name.partition("_eta")[2]
    sampler = DiffusionSampler(
        denoise=denoise,
        tokenizer=Latents(),
        solver=DDIM(eta=float(eta))
        if eta
        else Ancestral(variance="learned" if learned else "large"),
        times=Respaced()(BETAS, len(noises)),
        noise_shape=tuple(noises.shape[2:]),
        device=noises.device,
    )
    y, free_y = given["cfg_y"].split(n)
    cond = Cond(label=y, negative=Cond(label=free_y))
    with torch.no_grad():
        start = given["loop_z"][:n] / BETAS.coeffs(sampler.times[0])[1].float()
        return run(sampler, start, cond, Recorded(noises[:, :n]))
