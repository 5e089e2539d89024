"""The released VAR: its tokenizer, its transformer, and how it is sampled."""

from typing import Any

import torch
from golden_case import Case
from pyramids import LOGITS, compare_steps, generator, masked, off, released
from torch import Tensor

from genvis.backbones.scales import block_causal, levels
from genvis.backbones.var import VAR
from genvis.checkpoint import load_state
from genvis.integrations.official import from_official
from genvis.samplers.decoding import soften, truncate
from genvis.tokenizers.multi_scale_vq import MultiScaleVQ, quantizer_config, quantizer_state
from genvis.tokenizers.quantizers.multi_scale import MultiScale
from genvis.types import Cond

CLOSE = (1e-4, 1e-4)
FEATURES = (1e-4, 0.0)
EXACT = (0.0, 0.0)


def check(case: Case) -> None:
    name = case.spec.get("cls", "")
    if "VectorQuantizer2" in name:
        quantizer(case)
    elif name.endswith(".VQVAE"):
        tokenizer(case)
    elif "attn_bias_for_masking" in name:
        masks(case)
    elif "VAR.forward" in name:
        transformer(case)
    elif "autoregressive_infer_cfg" in name:
        inference(case)
    elif "sample_with_top_k_top_p" in name:
        decoding(case)
    else:
        case.unclaimed(f"class {name}")


def load_quantizer(case: Case) -> MultiScale:
    built = quantizer_config(case.spec["config"]).build()
    state = quantizer_state(case.tensors("state/"), built)
    load_state(built, state, "official multi-scale quantizer")
    return built


def residual_gradients(total: Tensor, f: Tensor, net: MultiScale) -> dict[str, Tensor]:
    """By our names; zero where nothing is learned."""
    leaves = {"f": f, **dict(net.named_parameters())}
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), found, strict=True)
    }


def quantizer(case: Case) -> None:
    """The training pass: its value, its loss, its tokens, and every gradient."""
    given, net = case.tensors("in/"), load_quantizer(case)
    f = given["f"].requires_grad_()
    q = net(f)
    case.compare("f_hat", q.f_hat, tolerance=CLOSE)
    case.compare("vq_loss", q.loss.mean()[None], tolerance=CLOSE)
    for k, tokens in enumerate(q.tokens):
        case.compare(f"idx_{k}", tokens, tolerance=EXACT)
    wanted: list[int] = case.spec["config"]["phi_index_per_scale"]
    assert [*net.phi_of] == wanted
    grads = residual_gradients((q.f_hat * given["w"]).sum() + 10 * q.loss.mean(), f, net)
    case.compare("grad_f", grads.pop("f"), tolerance=CLOSE)
    official: dict[str, Any] = {
        name.removeprefix("grad/"): value
        for name, value in case.expected.items()
        if name.startswith("grad/")
    }
    ours = quantizer_state(official, net, complete=False)
    names = {id(value): name for name, value in official.items()}
    for name, value in ours.items():
        case.compare(f"grad/{names[id(value)]}", grads[name], tolerance=CLOSE)


@torch.no_grad()
def tokenizer(case: Case) -> None:
    """From an image to tokens and back, by every way of the released class."""
    net = from_official("var_vqvae", case.tensors("state/"), case.spec["config"])
    assert isinstance(net, MultiScaleVQ)
    given, last = case.tensors("in/"), len(net.scales) - 1
    case.compare("f", net.features(given["img"]), tolerance=FEATURES)
    pyramid = net.encode(given["img"])
    for k, tokens in enumerate(pyramid.tokens):
        case.compare(f"idx_{k}", tokens, tolerance=EXACT)
    case.compare("var_input", pyramid.inputs, tolerance=FEATURES)

    f_hat = net.blank(len(given["img"]))
    for k, tokens in enumerate(pyramid.tokens):
        f_hat = net.accumulate(f_hat, tokens, k)
        if k == 0:
            case.compare("fhat_0", f_hat, tolerance=FEATURES)
    case.compare("fhat_last", f_hat, tolerance=FEATURES)
    previews = net.previews(pyramid.tokens)
    case.compare("img_scale0", previews[0], tolerance=FEATURES)
    case.compare("img_last", previews[last], tolerance=FEATURES)
    whole = net(given["img"])
    case.compare("rec_forward", whole.images, tolerance=FEATURES)
    case.compare("vq_loss_forward", whole.penalty.mean()[None], tolerance=(0.0, 1e-4))

    tokens = tuple(given[f"ridx_{k}"] for k in range(last + 1))
    case.compare("rimg", net.previews(tokens)[last], tolerance=FEATURES)
    case.compare("rvar_input", net.pyramid(tokens).inputs, tolerance=FEATURES)


def masks(case: Case) -> None:
    """The released bias: 0 where a token sees another, -inf elsewhere."""
    for i, scales in enumerate(case.spec["config"]["patch_nums"]):
        level = levels(scales)
        bias = torch.zeros(len(level), len(level)).masked_fill(~block_causal(level), -torch.inf)
        case.compare(f"lvl_{i}", level[None], tolerance=EXACT)
        case.compare(f"mask_{i}", bias[None, None], tolerance=EXACT)


@torch.no_grad()
def transformer(case: Case) -> None:
    """Teacher forced: every recorded intermediate, the logits, and those of fewer scales."""
    net = from_official("var", case.tensors("state/"), case.spec["config"])
    assert isinstance(net, VAR)
    given, seen = case.tensors("in/"), dict[str, Tensor]()
    for i, block in enumerate(net.blocks):
        block.register_forward_hook(lambda *call, i=i: seen.update({f"after_block{i}": call[2][0]}))
    net.blocks[0].register_forward_pre_hook(lambda _, given: seen.update(x_embedded=given[0]))
    net.head_nm.register_forward_hook(lambda *call: seen.update(head_nm_out=call[2]))
    x, cond = given["x_BLCv_wo_first_l"], Cond(label=given["label_B"])
    seen["logits_BLV"] = net(x, cond)
    seen["after_last_block"] = seen[f"after_block{len(net.blocks) - 1}"]
    for name in case.expected.keys() & seen.keys():
        case.compare(name, seen[name], tolerance=CLOSE)
    for name in case.expected.keys() - seen.keys():
        last = int(name.removeprefix("logits_prog"))
        prefix = x[:, : net.ends[last + 1] - net.ends[1]]
        case.compare(name, net(prefix, cond), tolerance=CLOSE)


@torch.no_grad()
def inference(case: Case) -> None:
    sampler = released(case.spec["call"]).build(generator(case, "var"))
    last = compare_steps(case, sampler, case.tensors("in/")["label_B"])[-1]
    case.compare("f_hat", last.f_hat, tolerance=LOGITS)


def decoding(case: Case) -> None:
    """Truncation, and the soft codes of `more_smooth`."""
    given, config = case.tensors("in/"), case.spec["config"]
    for i, (top_k, top_p) in enumerate(config["settings_top_k_top_p"]):
        left = truncate(given["logits"], top_k, off(top_p))
        case.compare(f"kept_{i}", masked(left))
        case.compare(f"probs_{i}", left.softmax(-1))
    for i, share in enumerate(config["gumbel_ratios"]):
        case.compare(f"gumbel_{i}", soften(given["logits"], given["exp_noise"], share))
