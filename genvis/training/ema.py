"""Exponential moving average of a network's weights, in float32."""

from copy import deepcopy

import torch
from torch import nn


class EMA:
    """`net` is the averaged twin, in eval mode. Buffers are copied, not averaged, and so are the
    parameters of modules that say `averaged = False`, because theirs may jump.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net = deepcopy(net).float().eval().requires_grad_(False)
        self.decay = decay
        self.jumping = {
            id(parameter)
            for module in self.net.modules()
            if not getattr(module, "averaged", True)
            for parameter in module.parameters(recurse=False)
        }

    @torch.no_grad()
    def update(self, net: nn.Module, n: int) -> None:
        """After optimizer step n = 1, 2, ...: decay min(decay, (1 + n) / (10 + n)), so that early
        weights fade fast.
        """
        decay = min(self.decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(
            list(self.net.parameters()), [p.float() for p in net.parameters()], 1 - decay
        )
        for twin, parameter in zip(self.net.parameters(), net.parameters(), strict=True):
            if id(twin) in self.jumping:
                twin.copy_(parameter)
        for ours, theirs in zip(self.net.buffers(), net.buffers(), strict=True):
            ours.copy_(theirs)
