"""FID-Inception under every published convention: resized pixels, features, logits.

The weights follow the case's recipe: element i of the k-th tensor by name hashes (i, k, salt).
"""

import re
from math import prod

import numpy as np
import torch
from golden_case import Case
from torch import Tensor

from genvis.checkpoint import load_state
from genvis.features.inception import prepare
from genvis.features.inception_net import InceptionNet
from genvis.features.resize import RESIZERS, resize

# output name -> (resizer, what of the pass): pytorch-fid resizes inside its network
FEATURES = {
    "pool_clean": ("clean", lambda seen: seen.pool),
    "pool_legacy_pytorch": ("legacy_pytorch", lambda seen: seen.pool),
    "pytorch_fid_64_": ("legacy_pytorch", lambda seen: seen.blocks[0]),
    "pytorch_fid_192_": ("legacy_pytorch", lambda seen: seen.blocks[1]),
    "pytorch_fid_768_": ("legacy_pytorch", lambda seen: seen.blocks[2]),
    "pytorch_fid_2048_": ("legacy_pytorch", lambda seen: seen.pool),
    "torch_fidelity_2048_": ("tf1_bilinear", lambda seen: seen.pool),
    "torch_fidelity_logits_unbiased_": ("tf1_bilinear", lambda seen: seen.logits),
    "torch_fidelity_logits_": ("tf1_bilinear", lambda seen: seen.biased_logits),
    "sfid_spatial_": ("tf1_bilinear", lambda seen: seen.spatial),
    "torchmetrics_2048_": ("torchmetrics_antialias", lambda seen: seen.pool),
}
RELATIVE = 2e-4  # of the largest absolute value of a feature vector
ABSOLUTE = {"clean": 1e-3}  # of a resized value in [0, 255]; 2e-3 for the other resizers


def check(case: Case) -> None:
    net = InceptionNet().eval()
    load_state(net, recipe(case), case.name)
    for name, image in case.tensors("in/").items():
        number = re.fullmatch(r"image(\d+)", name)
        if number is None or image.dtype != torch.uint8 or image.shape[2:] != (3,):
            case.unclaimed(f"input {name} {tuple(image.shape)} {image.dtype}")
        pixels = image.permute(2, 0, 1)[None]
        for mode in RESIZERS:
            _check_resize(case, f"resize_{mode}{number[1]}", mode, pixels)
        _check_features(case, net, number[1], pixels)


def _check_resize(case: Case, name: str, mode: str, pixels: Tensor) -> None:
    values, tolerance = resize(pixels, mode)[0].permute(1, 2, 0), (ABSOLUTE.get(mode, 2e-3), 0.0)
    if name in case.expected:
        case.compare(name, values[::7, ::7], tolerance=tolerance)
    if f"{name}_mean" in case.expected:
        case.compare(f"{name}_mean", values.double().mean((0, 1)), tolerance=tolerance)


def _check_features(case: Case, net: InceptionNet, number: str, pixels: Tensor) -> None:
    wanted = {
        name + number: how for name, how in FEATURES.items() if name + number in case.expected
    }
    modes = list({mode: None for mode, _ in wanted.values()})
    if not modes:
        return
    with torch.no_grad():
        passes = {mode: net(prepare(pixels, mode)) for mode in modes}
    for name, (mode, part) in wanted.items():
        atol = RELATIVE * float(case.expected[name].abs().max())
        case.compare(name, part(passes[mode]), tolerance=(atol, 0.0))


def recipe(case: Case) -> dict[str, Tensor]:
    """Every tensor of `state_shapes`, checked at the values that the case lists."""
    shapes, salt = case.spec["state_shapes"], case.spec.get("salt", 0)
    state = {name: _fill(name, shapes[name], k, salt) for k, name in enumerate(sorted(shapes))}
    checks = case.spec["weight_recipe"].get("check_first_last_sum", {})
    for name, (first, last, total) in checks.items():
        flat = state[name].double().flatten()
        found = torch.stack([flat[0], flat[-1], flat.sum()])
        torch.testing.assert_close(
            found, torch.tensor([first, last, total], dtype=torch.float64), atol=1e-9, rtol=1e-9
        )
    return state


def _fill(name: str, shape: list[int], k: int, salt: int) -> Tensor:
    u = uniform(prod(shape), k, salt)
    c = 2 * u - 1
    values = {
        "conv.weight": lambda: c * np.sqrt(6 / prod(shape[1:])),
        "bn.weight": lambda: 0.5 + u,
        "bn.running_var": lambda: 0.5 + u,
        "bn.bias": lambda: 0.2 * c,
        "bn.running_mean": lambda: 0.2 * c,
        "fc.weight": lambda: c * np.sqrt(6 / 2048),
        "fc.bias": lambda: 0.1 * c,
    }[".".join(name.split(".")[-2:])]()
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def uniform(n: int, k: int, salt: int) -> np.ndarray:
    """The first n numbers in [0, 1) of the k-th stream: the finaliser of splitmix64."""
    z = np.arange(1, n + 1, dtype=np.uint64) + np.uint64((k * 2**32 + salt * 2**48) % 2**64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
