"""What the layers of a network are called with while it runs.

with seeing(net, plan.needing_data(net), calls=8) as seen:
    for x, t, cond in batches:  # 8 of them
        net(x, t, cond)
plan.apply(net, seen)
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from genvis.quant.transform import inputs


@contextlib.contextmanager
def seeing(
    net: nn.Module, names: Iterable[str], *, calls: int, tokens: int = 4096
) -> Iterator[dict[str, list[Tensor]]]:
    """Inside, the inputs of the named layers are kept as they pass, by name, in full precision.

    About `tokens` tokens are kept of each layer, and at least a row of each of its calls, if it is
    called `calls` times; a call's rows evenly over its batch.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def look(name: str) -> Any:
        def keep(layer: Any, given: tuple[Tensor, ...]) -> None:
            x = given[0].detach()
            if not len(x):  # as an expert's that no token was sent to
                return
            row = x[0].numel() // inputs(layer)  # tokens in it
            count = min(len(x), max(1, tokens // (calls * row)))
            seen[name].append(x[torch.arange(count, device=x.device) * len(x) // count].clone())

        return keep

    handles = [net.get_submodule(name).register_forward_pre_hook(look(name)) for name in seen]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
