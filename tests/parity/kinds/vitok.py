"""The released ViTok auto-encoders: the tables they start from, their codes and their pixels."""

from dataclasses import fields

import torch
from golden_case import Case
from torch import Tensor

from genvis.integrations.official import from_official
from genvis.tokenizers.gaussian import DiagonalGaussian
from genvis.tokenizers.patches import patchify, unpatchify
from genvis.tokenizers.vitok import ViTok
from genvis.tokenizers.vitok_v2 import ViTokV2


def check(case: Case) -> None:
    if case.spec.get("class_name") != "AE":
        case.unclaimed(f"class {case.spec.get('class_name')}")
    with torch.no_grad():
        (mixed_sizes if "patches" in case.tensors("in/") else clips)(case)


def clips(case: Case) -> None:
    net = from_official("vitok", case.tensors("state/"), case.spec["config"])
    assert isinstance(net, ViTok)
    grid = net.config.grid
    assert list(grid) == case.spec["grid"]
    x, eps = case.tensors("in/")["x"], case.tensors("in/")["eps"]
    seen = outputs(net, x)
    exact = not net.config.variational
    codes = seen["encoder_to_code"]
    moments = torch.cat([codes, torch.zeros_like(codes)], -1) if exact else codes
    posterior = DiagonalGaussian.of(moments.mT, deterministic=exact)
    mean, logvar, std = (v.mT for v in (posterior.mean, posterior.logvar, posterior.std))
    z = mean + std * eps
    found = {
        "tubelet_embed": seen["tubelet_embed"],
        "moments": moments,
        "mean": mean,
        "logvar": logvar,
        "std": std,
        "kl": posterior.kl() / mean[0].numel(),
        "z": z,
        "dec_mode": net.pixels(mean, grid),
        "dec_z": net.pixels(z, grid),
    }
    fresh = net.config.build().state_dict()
    found |= {
        f"init_{name}": fresh[name] for name in ("posemb", "dec_posemb", "code") if name in fresh
    }
    for name, output in found.items():
        if name in case.expected:
            case.compare(name, output)
    if net.config.channels == 3:
        as_tokenizer(net, x if net.config.frames > 1 else x.squeeze(2), found)


def outputs(net: ViTok, x: Tensor) -> dict[str, Tensor]:
    """What two layers of the encoder give, by their names."""
    seen: dict[str, Tensor] = {}
    handles = [
        net.get_submodule(name).register_forward_hook(
            lambda *call, name=name: seen.update({name: call[2]})
        )
        for name in ("tubelet_embed", "encoder_to_code")
    ]
    net.codes(x)
    for handle in handles:
        handle.remove()
    return seen


def as_tokenizer(net: ViTok, images: Tensor, found: dict[str, Tensor]) -> None:
    """The same numbers through the protocol, as maps."""
    moments, made = net.encode(images), net(images)
    assert moments.mean.shape[1:] == net.config.shape
    assert (moments.std is None) == (not net.config.variational)
    pairs = [(moments.mean.flatten(2).mT, found["mean"])]
    if moments.std is not None:
        pairs.append((moments.std.flatten(2).mT, found["std"]))
    pairs.append((made.images, found["dec_mode"].view_as(images)))
    pairs.append((net.decode(moments.mode()), made.images.clamp(-1, 1)))
    pairs.append((made.penalty, found["kl"].expand(len(images))))
    for ours, wanted in pairs:
        torch.testing.assert_close(ours, wanted, atol=2e-5, rtol=1e-4)


def mixed_sizes(case: Case) -> None:
    """Images of several sizes in one padded batch; alone, each gives the same codes and pixels."""
    net = from_official("vitok_v2", case.tensors("state/"), case.spec["config"])
    assert isinstance(net, ViTokV2)
    given, patch = case.tensors("in/"), case.spec["patch"]
    images = [given[f"image{i}"] for i in range(len(case.spec["sizes"]))]
    patches = patchify(images, patch, given["patches"].shape[1])
    named = zip(("patches", "patch_mask", "row_idx", "col_idx"), fields(patches), strict=False)
    for name, field in named:
        assert torch.equal(getattr(patches, field.name), given[name]), name
    codes = net.encode_patches(patches)
    decoded = net.decode_patches(codes)
    case.compare("z", codes.values)
    case.compare("patches", decoded.values)
    for image, found in zip(images, unpatchify(decoded, patch), strict=True):
        assert found.shape == image.shape
        if not (image.shape[1] % patch or image.shape[2] % patch):
            alone = net(image[None]).images[0]
            torch.testing.assert_close(found, alone, atol=2e-5, rtol=1e-4)
