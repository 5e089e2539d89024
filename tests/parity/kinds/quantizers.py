"""The released quantizers of discrete tokenizers, and the Gaussian of a continuous one."""

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from golden_case import Case
from recorded import Recorded
from torch import Tensor

from genvis.checkpoint import load_state
from genvis.random import HashKeys
from genvis.tokenizers.gaussian import DiagonalGaussian
from genvis.tokenizers.quantizers.bernoulli import Bernoulli, BernoulliConfig
from genvis.tokenizers.quantizers.binary import (
    BSQ,
    LFQ,
    BSQConfig,
    LFQConfig,
    average,
    from_index,
    probabilities,
    split,
    to_index,
)
from genvis.tokenizers.quantizers.multi_scale import MultiScale
from genvis.tokenizers.quantizers.quantized import entropy, histogram, rotated
from genvis.tokenizers.quantizers.scalar import FSQ, FSQConfig
from genvis.tokenizers.quantizers.vector import EMAVQ, VQ, EMAVQConfig, VQConfig
from kinds.var import load_quantizer, residual_gradients


def check(case: Case) -> None:
    checks: dict[str, Callable[[Case], None]] = {
        "FSQ": fsq,
        "LFQ": lfq,
        "BinarySphericalQuantizer": bsq,
        "VectorQuantizer": vq,
        "VectorQuantize": ema_vq,
        "rotate_to": rotation,
        "BinaryQuantizer": binary_autoencoder,
        "VectorQuantizer2": multi_scale,
        "DiagonalGaussianDistribution": gaussian,
    }
    name = case.spec.get("class_name")
    if name not in checks:
        case.unclaimed(f"class {name}")
    checks[name](case)


def gradient(total: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(total, of, retain_graph=True)[0]


def leaf(case: Case, name: str) -> Tensor:
    return case.tensors("in/")[name].requires_grad_()


def fsq(case: Case) -> None:
    official, given = case.spec["config"], case.tensors("in/")
    levels = tuple(official["levels"])
    quantizer = FSQ(FSQConfig(levels=levels, symmetric=official.get("preserve_symmetry", False)))
    z = leaf(case, "z")
    q = quantizer(z)
    case.compare("codes", q.z)
    case.compare("indices", q.indices)
    case.compare("level_indices", quantizer.level_indices(q.indices))
    case.compare("grad_z", gradient((q.z * given["w"]).sum(), z))
    case.compare("codes_of_some_indices", quantizer.codes(given["some_indices"]))


def lfq(case: Case) -> None:
    official, given = case.spec["config"], case.tensors("in/")
    config = LFQConfig(
        bits=official["codebook_bits"],
        codebooks=official["num_codebooks"],
        spherical=official["spherical"],
        inv_temperature=official["inv_temperature"],
        entropy=official["entropy_loss_weight"],
        commitment=official["commitment_loss_weight"],
        diversity=official["diversity_gamma"],
    )
    quantizer, z = LFQ(config), leaf(case, "z")
    q = quantizer(z)
    case.compare("quantized_train", q.z)
    case.compare("quantized_eval", quantizer.codes(q.indices))
    case.compare("codes_from_indices", quantizer.codes(q.indices))
    case.compare("indices", q.indices)
    case.compare("aux_loss", q.loss.mean()[None])
    case.compare("per_sample_entropy", q.logs["entropy_each"][None])
    case.compare("codebook_entropy", q.logs["entropy_together"].mean()[None])
    case.compare("commitment", q.logs["commitment"][None])
    case.compare("grad_z", gradient((q.z * given["w"]).sum() + q.loss.mean(), z))


def bsq(case: Case) -> None:
    """The analytical entropy is that of groups of one bit; indices keep the groups' size."""
    official, given = case.spec["config"], case.tensors("in/")
    size, bits = official["group_size"], official["embed_dim"]
    mode = official["persample_entropy_compute"]
    config = BSQConfig(
        bits=bits,
        group={"group": size, "analytical": 1}[mode],
        spherical=official["l2_norm"],
        **{key: official[key] for key in ("inv_temperature", "beta", "gamma0", "gamma", "zeta")},
    )
    maps = official["input_format"] == "bchw"
    quantizer, h, w = BSQ(config), leaf(case, "h"), given["w"]
    out = (lambda x: rearrange(x, "b h w d -> b d h w")) if maps else (lambda x: x)
    f = rearrange(h, "b d h w -> b h w d") if maps else h
    z = torch.nn.functional.normalize(f, dim=-1) if config.spherical else f
    q = quantizer(f)
    corners = split(q.z, size)
    case.compare("z", out(z))
    case.compare("zq", out(q.z))
    case.compare("loss", q.loss.mean()[None])
    case.compare("indices", to_index(q.z))
    case.compare("group_indices", to_index(corners))
    case.compare("persample_entropy", q.logs["entropy_each"][None])
    case.compare("codebook_entropy", q.logs["entropy_together"][None])
    p = probabilities(split(z, config.group), config.size, config.inv_temperature)
    case.compare("avg_prob", average(p))
    case.compare("grad_h", gradient((out(q.z) * w).sum() + q.loss.mean(), h))
    case.compare("codes_from_indices", out(from_index(to_index(q.z), bits, config.size)))
    grouped = from_index(to_index(corners), size, config.size).flatten(-2)
    case.compare("codes_from_group_indices", out(grouped))


def vq(case: Case) -> None:
    """The released loss sums over the vector, which is `width` times our mean."""
    official, given = case.spec["config"], case.tensors("in/")
    config = VQConfig(
        codes=official["n_embed"],
        width=official["embed_dim"],
        normalize=official["l2_norm"],
        beta=official["beta"],
    )
    quantizer = VQ(config)
    load_state(quantizer, {**quantizer.state_dict(), **case.tensors("state/")}, "official VQ")
    z = leaf(case, "z")
    q = quantizer(z)
    loss = q.loss.mean() * config.width
    total = (q.z * given["w"]).sum() + loss
    case.compare("zq", q.z)
    case.compare("indices", q.indices)
    case.compare("loss_sumdim", loss[None])
    case.compare("loss_meandim", q.loss.mean()[None])
    case.compare("grad_z", gradient(total, z))
    case.compare("grad_codebook", gradient(total, quantizer.embedding.weight))
    counts = histogram(q.indices, config.codes)
    case.compare("entropy", entropy(counts, pseudo=1e-4)[None])


def ema_vq(case: Case) -> None:
    """Two steps: each quantizes with the codebook as the one before left it."""
    official, given = case.spec["config"], case.tensors("in/")
    if official["threshold_ema_dead_code"]:
        case.unclaimed("the codes that replace dead ones are random")
    config = EMAVQConfig(
        codes=official["codebook_size"],
        width=official["dim"],
        normalize=official["use_cosine_sim"],
        beta=official["commitment_weight"],
        rotation=official["rotation_trick"],
        decay=official["decay"],
        revive=0.0,
    )
    quantizer = EMAVQ(config)
    state = {
        "embedding.weight": given["embed"][0],
        "uses": given["cluster_size"][0],
        "sums": given["embed_avg"][0],
        "started": torch.tensor(True),
    }
    load_state(quantizer, state, "official EMA VQ")
    for k in range(2):
        z = leaf(case, f"z{k}")
        q = quantizer(z)
        case.compare(f"quantized{k}", q.z)
        case.compare(f"indices{k}", q.indices)
        case.compare(f"loss{k}", q.loss.mean()[None])
        case.compare(f"grad_z{k}", ema_gradient(q.z, q.loss.mean(), z, given))
        quantizer.learn(z, HashKeys.of(0, [0]))
        case.compare(f"embed{k}", quantizer.embedding.weight[None])
        case.compare(f"cluster_size{k}", quantizer.uses[None])
        case.compare(f"embed_avg{k}", quantizer.sums[None])


def ema_gradient(z_q: Tensor, loss: Tensor, z: Tensor, given: dict[str, Tensor]) -> Tensor:
    return gradient((z_q * given["w"]).sum() + loss if "w" in given else z_q.sum() + loss, z)


def rotation(case: Case) -> None:
    given = case.tensors("in/")
    z = leaf(case, "z")
    value = rotated(z, given["e"])
    case.compare("value", value)
    case.compare("grad_z", gradient((value * given["w"]).sum(), z))


def binary_autoencoder(case: Case) -> None:
    official, given = case.spec["config"], case.tensors("in/")
    if not official["deterministic"]:
        case.unclaimed("its bits are random")
    config = BernoulliConfig(
        bits=official["codebook_size"],
        subcodes=official["token_each"],
        inputs=official["num_hiddens"],
        width=official["emb_dim"],
        signed=official["use_tanh"],
        certainty=1.0,
    )
    state = case.tensors("state/")
    ours = {name.replace("proj.0.", "proj."): value for name, value in state.items()}
    ours["proj.weight"] = ours["proj.weight"].flatten(1)
    quantizer = Bernoulli(config)
    load_state(quantizer, ours, "official binary auto-encoder")
    h = leaf(case, "h")
    f = rearrange(h, "b d h w -> b h w d")
    q, mean = quantizer(f), quantizer.mean(f)
    z_q = rearrange(q.z, "b h w d -> b d h w")
    found: dict[str, Any] = {
        "z_q": z_q,
        "prob": rearrange(mean, "b h w n -> b n h w"),
        "bits": rearrange(quantizer.bits(mean), "b h w n -> b n h w"),
        "code_loss": q.loss.mean()[None],
        "sub_indices": q.indices.flatten(1, 2),
    }
    for name, value in found.items():
        case.compare(name, value)
    total = (z_q * given["w"]).sum() + q.loss.mean()
    case.compare("grad_h", gradient(total, h))


def multi_scale(case: Case) -> None:
    quantizer, given = load_quantizer(case), case.tensors("in/")
    assert isinstance(quantizer, MultiScale)
    f = leaf(case, "f")
    q = quantizer(f)
    case.compare("f_hat", q.f_hat)
    case.compare("loss", q.loss.mean()[None])
    for k, (tokens, f_hat) in enumerate(zip(q.tokens, q.sums, strict=True)):
        case.compare(f"idx{k}", tokens)
        case.compare(f"f_hat{k}", f_hat)
    total = (q.f_hat * given["w"]).sum() + q.loss.mean()
    grads = residual_gradients(total, f, quantizer)
    case.compare("grad_f", grads["f"])
    case.compare("grad_embedding", grads["embedding.weight"])


def gaussian(case: Case) -> None:
    given = case.tensors("in/")
    seen = DiagonalGaussian.of(given["moments"])
    for name in ("mean", "logvar", "std", "var"):
        case.compare(name, getattr(seen, name))
    case.compare("mode", seen.mode())
    case.compare("sample", seen.sample(Recorded(given["eps"][None])))
    case.compare("kl", seen.kl())
    case.compare("kl_other", seen.kl(DiagonalGaussian.of(given["moments_other"])))
    case.compare("nll", seen.nll(given["x"]))
    case.compare("extreme_logvar", DiagonalGaussian.of(given["moments_extreme"]).logvar)
    exact = DiagonalGaussian.of(given["moments"], deterministic=True)
    case.compare("deterministic_std", exact.std)
    case.compare("deterministic_kl", exact.kl())
