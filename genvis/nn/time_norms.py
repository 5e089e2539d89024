"""Norms whose gain and bias move with time: conditioning without a network for it.

Source: Liu et al. 2024, "Alleviating Distortion in Image Generation via Multi-Resolution Diffusion
Models and Time-Dependent Layer Normalization" (DiMR), TD-LN, and the released code, whose attribute
names these are; RMS: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization".
Letters: B batch, D width, tau (B,) time in [-1, 1] from clean to noise, s a sigmoid of it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TimeParameter(nn.Module):
    """A vector on the line through two learned ones: p1 + s (p0 - p1), where
    s = sigmoid((w + 1) tau + b). At first p0 = p1 = `value`, so that time changes nothing.
    """

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.param0 = nn.Parameter(torch.full((width,), value))
        self.param1 = nn.Parameter(torch.full((width,), value))
        self.nodecay_weight = nn.Parameter(torch.zeros(width))
        self.nodecay_bias = nn.Parameter(torch.zeros(width))

    def forward(self, tau: Tensor, x: Tensor) -> Tensor:
        """(B, 1, ..., 1, D), to be multiplied with or added to x (B, ..., D); typed like x."""
        s = torch.sigmoid((self.nodecay_weight + 1) * tau[:, None] + self.nodecay_bias)
        value = self.param1 + s * (self.param0 - self.param1)  # (B, D)
        return value.to(x.dtype).unflatten(0, (len(tau), *[1] * (x.ndim - 2)))


class TimeLayerNorm(nn.Module):
    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.width, self.eps = width, eps
        self.weight = TimeParameter(width, 1.0)
        self.bias = TimeParameter(width, 0.0)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """x (B, ..., D) at tau (B,)."""
        x = F.layer_norm(x, (self.width,), eps=self.eps)
        return x * self.weight(tau, x) + self.bias(tau, x)


class TimeRMSNorm(nn.Module):
    """x / (rms(x) + eps): eps is added to the root, not under it."""

    def __init__(self, width: int, eps: float = 1e-8, bias: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.scale = TimeParameter(width, 1.0)
        self.offset = TimeParameter(width, 0.0) if bias else None

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """x (B, ..., D) at tau (B,)."""
        rms = x.norm(dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        x = x / (rms + self.eps)
        x = x * self.scale(tau, x)
        return x if self.offset is None else x + self.offset(tau, x)
