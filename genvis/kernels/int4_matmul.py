"""Products with 4-bit weights that stay packed: inputs and outputs in floating point.

    y = x W^T,  W = (code - zero) * scale,  codes in 0..15, G neighbours in a row share a scale

The fast path is torch's own, of a layout that it chooses; it reads a quarter of the bytes of a 16
bit weight, which pays where few rows of inputs meet a large weight.
Letters: M rows, K inputs, N outputs, G weights in a group.
"""

import torch
from torch import Tensor

GROUPS = (256, 128, 64, 32)  # that the kernel knows
TILES = (8, 4, 2)  # of 16 inputs that a GPU takes at once


def int4_matmul_reference(x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """y (M, N) of x (M, K), codes (N, K), scale and zero (N, K / G): the definition."""
    blocks = codes.unflatten(1, (scale.shape[1], -1)).to(x.dtype)
    weight = (blocks - zero[..., None].to(x.dtype)) * scale[..., None].to(x.dtype)
    return x @ weight.flatten(1).t()


def lacks(shape: tuple[int, int], group: int, device: torch.device) -> str | None:
    """Why there is no kernel for a weight (N, K) here, or None."""
    (n, k), gpu = shape, device.type == "cuda"
    rows, inputs = (8, 16 * TILES[-1]) if gpu else (16, 32)
    if group not in GROUPS:
        return f"groups of {', '.join(map(str, sorted(GROUPS)))} weights, not {group}"
    if n % rows or k % inputs or k % group:
        return f"outputs in multiples of {rows} and inputs of {inputs}, not {n} and {k}"
    if gpu and torch.cuda.get_device_capability(device) < (8, 0):
        return "a GPU of capability 8.0"
    return None


def pack_int4(
    codes: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The codes as the kernel of their device wants them, and (K / G, N, 2) what steps and code 8
    are worth, in `dtype`, that of what the weight will meet: bfloat16 on a GPU.

    codes (N, K) in 0..15, scale and zero (N, K / G). ValueError if there is no kernel.
    """
    (n, k), group = codes.shape, codes.shape[1] // scale.shape[1]
    if reason := lacks((n, k), group, codes.device):
        raise ValueError(f"the int4 kernel here takes {reason}")
    worth = torch.stack([scale, (8 - zero) * scale], -1).transpose(0, 1)
    return _packed(codes), worth.contiguous().to(dtype)


def int4_matmul(x: Tensor, packed: Tensor, worth: Tensor, group: int) -> Tensor:
    """y (M, N) of x (M, K) and a weight as `pack_int4` leaves it; x has the dtype of `worth`."""
    if x.device.type == "cuda":
        return torch.ops.aten._weight_int4pack_mm(x, packed, group, worth)
    return torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, group, worth)


def _packed(codes: Tensor) -> Tensor:
    if codes.device.type != "cuda":
        return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
    tiles = next(tiles for tiles in TILES if codes.shape[1] % (16 * tiles) == 0)
    even, odd = codes.to(torch.uint8).unflatten(1, (-1, 2)).unbind(2)
    return torch.ops.aten._convert_weight_to_int4pack((even << 4 | odd).contiguous(), tiles)
