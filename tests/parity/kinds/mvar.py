"""The released scans and Mamba-2 mixer, and M-VAR: on known tokens, and generating greedily."""

import json
import re
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from golden_case import Case
from torch import Tensor

from genvis.backbones.mvar import MVAR
from genvis.backbones.scales import block_diagonal, levels
from genvis.checkpoint import load_state
from genvis.integrations.official import from_official
from genvis.kernels.scan import selective_scan, ssd_chunked
from genvis.nn.mamba import Mamba2
from genvis.samplers.guided_scales import GuidedScales, ScaleGuidance
from genvis.tokenizers.multi_scale_vq import quantizer_config, quantizer_state
from genvis.tokenizers.quantizers.multi_scale import MultiScale
from genvis.types import Cond

SCAN = (1e-4, 1e-4)
LOGITS = (2e-4, 0.0)
EXACT = (0.0, 0.0)
MIXER = {  # our arguments for the released mixer's
    "d_model": "width",
    "d_state": "state",
    "d_conv": "conv",
    "expand": "expand",
    "headdim": "head",
    "ngroups": "groups",
}
MIXER_ONLY = {
    "rmsnorm": True,
    "norm_before_gate": False,
    "D_has_hdim": False,
    "bias": False,
    "conv_bias": True,
    "norm_eps": 1e-5,
}


@torch.no_grad()
def check(case: Case) -> None:
    kind = case.spec.get("cls", "")
    if "selective_scan" in kind:
        scan(case)
    elif "ssd_minimal" in kind:
        ssd(case)
    elif "Mamba2.forward" in kind:
        mixer(case)
    elif "MVAR.forward" in kind:
        model(case)
    else:
        case.unclaimed(f"class {kind}")


def scan(case: Case) -> None:
    """Mamba-1's scan with and without its skip and gate, and with other shapes of b and c."""
    given = case.tensors("in/")
    x, dt, z = (rearrange(given[name], "b d l -> b l d") for name in ("u", "delta", "z"))
    dt = dt + given["delta_bias"]
    dt = F.softplus(dt) if case.spec["config"]["delta_softplus"] else dt

    def run(suffix: str) -> tuple[Tensor, Tensor]:
        b, c = (grouped(given[name + suffix], x) for name in ("B", "C"))
        return selective_scan(x, dt, given["A"], b, c)

    for name in case.expected.keys() - {"last_state", "y_noz_noD"}:
        y, _ = run(name.removeprefix("y"))
        gated = (y + given["D"] * x) * F.silu(z)
        case.compare(name, rearrange(gated, "b l d -> b d l"))
    y, last = run("")
    case.compare("y_noz_noD", rearrange(y, "b l d -> b d l"))
    case.compare("last_state", last)


def grouped(given: Tensor, x: Tensor) -> Tensor:
    """(B, L, G, S) of (B, S, L), of (B, G, S, L), or of (D, S), the same at all times."""
    if given.ndim == 2:
        return given.expand(*x.shape[:2], -1, -1)
    if given.ndim == 3:
        return rearrange(given, "b s l -> b l 1 s")
    return rearrange(given, "b g s l -> b l g s")


def ssd(case: Case) -> None:
    """Mamba-2's scan from nothing and from a state, in chunks of the recorded length and of
    others.
    """
    given, block = case.tensors("in/"), case.spec["config"]["block_len"]
    start = given["initial_state"][:, 0]
    for chunk in (block, 5, 1, given["X"].shape[1]):
        for suffix, state in (("", torch.zeros_like(start)), ("_init", start)):
            x, dt, a, b, c = (given[name] for name in ("X", "dt", "A", "B", "C"))
            y, last = ssd_chunked(x, dt, a, b, c, state, chunk)
            case.compare(f"Y{suffix}", y, tolerance=SCAN)
            case.compare(f"final_state{suffix}", last, tolerance=SCAN)


def mixer(case: Case) -> None:
    """All tokens at once, and scale by scale with the recorded states."""
    official = case.spec["config"]
    for name, value in MIXER_ONLY.items():
        if official.get(name, value) != value:
            case.unclaimed(f"{name} {official[name]}")
    net = Mamba2(**{ours: official[theirs] for theirs, ours in MIXER.items() if theirs in official})
    load_state(net, case.tensors("state/"), "official mixer")
    u = case.tensors("in/")["u"]
    case.compare("y", net(u))
    sides = json.loads(re.search(r"\[[\d, ]+\]", case.spec["inputs"]["u"])[0])
    state, parts = None, []
    for k, tokens in enumerate(u.split([p * p for p in sides], dim=1)):
        y, state = net.extend(tokens, state)
        parts.append(y)
        if f"ssm_state_{k}" in case.expected:
            case.compare(f"ssm_state_{k}", state.h)
            # the released tail has one more column, which the next token pushes out
            wanted = case.expected[f"conv_state_{k}"][..., 1:]
            case.compare(f"conv_state_{k}", state.tail, wanted)
    case.compare("y", torch.cat(parts, dim=1))


def model(case: Case) -> None:
    net = from_official("mvar", case.tensors("state/mvar/"), case.spec["config"]["mvar"])
    assert isinstance(net, MVAR)
    given = case.tensors("in/")
    x, cond = given["x_BLCv_wo_first_l"], Cond(label=given["label_B"])
    level = levels(net.config.scales)
    bias = torch.zeros(len(level), len(level)).masked_fill(~block_diagonal(level), -torch.inf)
    case.compare("attn_bias_for_masking", bias[None, None], tolerance=EXACT)

    seen, block = dict[str, Tensor](), net.blocks[0]
    block.attn.register_forward_hook(lambda *call: seen.update(attn_branch0=call[2]))
    block.mamba.out_proj.register_forward_hook(lambda *call: seen.update(mamba_branch0=call[2]))
    block.register_forward_hook(
        lambda *call: seen.update(x_embedded=call[1][0], after_block0=call[2][0])
    )
    seen["logits_BLV"] = net(x, cond)
    for name, value in tuple(seen.items()):
        case.compare(name, value, tolerance=LOGITS)
    greedy(case, net, x, cond)


def greedy(case: Case, net: MVAR, x: Tensor, cond: Cond) -> None:
    """Scale by scale with carried states, the recorded inputs, and those of our own tokens."""
    scales = net.config.scales
    codes = quantizer_config(case.spec["config"]["quantizer"]).build()
    assert isinstance(codes, MultiScale)
    state = {k[9:]: v for k, v in case.tensors("state/vae/").items()}
    load_state(codes, quantizer_state(state, codes), "official multi-scale quantizer")
    guidance = ScaleGuidance(scale=1 + case.spec["call"]["cfg"])
    guided = GuidedScales.of(net, scales, guidance, x.device)
    whole = guided(x, cond)
    f_hat = torch.zeros(len(x), codes.config.width, scales[-1], scales[-1])
    inputs, memory = None, None
    for k, (begin, end) in enumerate(pairwise(net.ends)):
        case.compare(f"cfg_logits_{k}", whole[:, begin:end], tolerance=LOGITS)
        logits, memory = guided.extend(inputs, k, cond, memory)
        case.compare(f"cfg_logits_{k}", logits, tolerance=LOGITS)
        tokens = logits.argmax(2)
        case.compare(f"idx_{k}", tokens, tolerance=EXACT)
        f_hat = f_hat + codes.grow(tokens, k, scales[-1])
        inputs = codes.shrink(f_hat, min(k + 1, len(scales) - 1))
