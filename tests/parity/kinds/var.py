"""The released multi-scale tokenizer of VAR."""

from typing import Any

import torch
from golden_case import Case
from torch import Tensor

from genvis.checkpoint import load_state
from genvis.integrations.official import from_official
from genvis.tokenizers.multi_scale_vq import MultiScaleVQ, quantizer_config, quantizer_state
from genvis.tokenizers.quantizers.multi_scale import MultiScale

CLOSE = (1e-4, 1e-4)
FEATURES = (1e-4, 0.0)
EXACT = (0.0, 0.0)


def check(case: Case) -> None:
    name = case.spec.get("cls", "")
    if "VectorQuantizer2" in name:
        quantizer(case)
    elif name.endswith(".VQVAE"):
        tokenizer(case)
    else:
        case.later("next-scale backbones are not built yet")


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
