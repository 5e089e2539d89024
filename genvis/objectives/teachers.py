"""The network that another is taught by, checked to speak of the same things."""

from collections.abc import Sequence
from typing import Any

from torch import nn


def teacher_of(
    model: Any, source: str, backbone: Sequence[str], config: Sequence[str]
) -> nn.Module:
    """The frozen network, where `model`'s is, of the model of the same kind in a folder or hub id.

    ValueError names the first of the given parts of `backbone`, or of the whole `config`, that
    differs.
    """
    found = type(model).from_pretrained(source)
    ours, theirs = model.config, found.config
    for part in backbone:
        a, b = (getattr(one.backbone, part) for one in (ours, theirs))
        if a != b:
            raise ValueError(f"teacher {source} has {part} {b}, this model has {a}")
    for part in config:
        if getattr(ours, part) != getattr(theirs, part):
            raise ValueError(f"teacher {source} has another {part} than this model")
    net: nn.Module = found.net
    return net.to(next(model.net.parameters()).device)
