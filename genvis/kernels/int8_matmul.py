"""Products of 8-bit integers, added up without rounding.

Letters: M rows, K inputs, N outputs.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Backend = Literal["auto", "int", "float", "reference"]
EXACT = 1024  # float32 holds sums of so many products of two int8: 2^10 2^7 2^7 = 2^24


def int8_matmul_reference(a: Tensor, b: Tensor) -> Tensor:
    """a b^T, int32 (M, N), of a (M, K) and b (N, K), int8; the definition that every fast path is
    compared with.
    """
    return (a.double() @ b.double().t()).to(torch.int32)  # exact up to K = 2^39


def int8_matmul(a: Tensor, b: Tensor, backend: Backend = "auto") -> Tensor:
    """The product by the named backend, all of them exact; shapes as in `int8_matmul_reference`.

    "int" are the integer units of a GPU, or of a CPU that has them (VNNI; without them it is 30 to
    80 times slower than float32); "float" is float32, as fast there as an ordinary product. "auto"
    is the faster one.
    """
    if a.dtype != torch.int8 or b.dtype != torch.int8 or a.ndim != 2 or a.shape[1:] != b.shape[1:]:
        raise ValueError(
            f"a and b must be int8 (M, K) and (N, K), got {a.dtype} {tuple(a.shape)} and "
            f"{b.dtype} {tuple(b.shape)}"
        )
    if backend == "auto":
        backend = "int" if integer_units(a.device) else "float"
    if backend == "int":
        return _on_gpu(a, b) if a.device.type == "cuda" else torch._int_mm(a, b.t())
    if backend == "float":
        return _as_float(a, b)
    if backend == "reference":
        return int8_matmul_reference(a, b)
    raise ValueError(f"backend must be auto, int, float or reference, got {backend!r}")


def integer_units(device: torch.device) -> bool:
    """Whether integer products are faster than float32 ones on this device."""
    return device.type == "cuda" or (device.type == "cpu" and torch.cpu._is_vnni_supported())


def _as_float(a: Tensor, b: Tensor) -> Tensor:
    """In slices of inputs that float32 adds up exactly, in any order."""
    parts = [
        x.float() @ y.float().t() for x, y in zip(a.split(EXACT, 1), b.split(EXACT, 1), strict=True)
    ]
    return sum(part.to(torch.int32) for part in parts)


def _on_gpu(a: Tensor, b: Tensor) -> Tensor:
    """cuBLAS wants more than 16 rows, and inputs and outputs in multiples of 8."""
    m, n = len(a), len(b)
    inputs = -a.shape[1] % 8
    a = functional.pad(a, (0, inputs, 0, max(0, 17 - m)))
    b = functional.pad(b, (0, inputs, 0, -n % 8))
    return torch._int_mm(a, b.t())[:m, :n]
