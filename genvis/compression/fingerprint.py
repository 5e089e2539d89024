"""What tells data from other data."""

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def fingerprint(value: Any) -> str:
    """The sha256 of a nest of tensors and plain values, as hex digits."""
    digest = hashlib.sha256()
    _digest(value, digest)
    return digest.hexdigest()


def _digest(value: Any, digest: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            digest.update(f"{key}:".encode())
            _digest(item, digest)
    elif isinstance(value, tuple | list):
        digest.update(f"{len(value)} items".encode())
        for item in value:
            _digest(item, digest)
    elif is_dataclass(value) and not isinstance(value, type):
        _digest({f.name: getattr(value, f.name) for f in fields(value)}, digest)
    else:
        digest.update(repr(value).encode())
