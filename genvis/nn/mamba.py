"""Mamba mixers: a projection, a short causal convolution, a scan, a gate, a projection.

Sources: Gu and Dao 2023, "Mamba", section 3.4 (`Mamba`); Zhu et al. 2024, "Vision Mamba", algorithm
1 (`BiMamba`); Dao and Gu 2024, "Transformers are SSMs", section 7 (`Mamba2`). Attribute names and
initial values are those of the released code.
Letters: B batch, L tokens, D width, E = expand D inner channels, H heads of P channels, S state
size, G groups, k taps of the convolution.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from genvis.kernels.scan import Backend, selective_scan, ssd_scan


@dataclass(frozen=True)
class ScanState:
    """What a mixer remembers of the tokens so far, batch first.

    tail: the last inputs of the convolution (B, channels, k - 1); h: (B, E, S) or (B, H, P, S).
    """

    tail: Tensor
    h: Tensor


class Mamba(nn.Module):
    """Mamba-1: a decay for every channel and state; steps of `rank`, by default D / 16."""

    def __init__(
        self,
        width: int,
        state: int = 16,
        conv: int = 4,
        expand: int = 2,
        rank: int | None = None,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        inner, self.backend = expand * width, backend
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)  # x, z
        self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D = _branch(
            inner, state, conv, rank or math.ceil(width / 16)
        )
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L, D) from the first token on: shaped like x."""
        return self.extend(x)[0]

    def extend(self, x: Tensor, state: ScanState | None = None) -> tuple[Tensor, ScanState]:
        """The outputs for the next tokens x (B, L, D), and what to hand to the call after."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        y, state = self._scan(x, state, self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D)
        return self.out_proj(y * F.silu(z)), state

    def _scan(
        self,
        x: Tensor,
        state: ScanState | None,
        conv1d: nn.Conv1d,
        x_proj: nn.Linear,
        dt_proj: nn.Linear,
        log_decay: Tensor,
        skip: Tensor,
    ) -> tuple[Tensor, ScanState]:
        x, tail = _convolve(conv1d, x, state)
        s = log_decay.shape[1]
        dt, b, c = x_proj(x).split([dt_proj.in_features, s, s], dim=-1)
        dt, a = F.softplus(_wide(dt_proj(dt))), -_wide(log_decay).exp()
        h = state.h if state else None
        y, h = selective_scan(x, dt, a, b[:, :, None], c[:, :, None], h, self.backend)
        return y + skip.to(x.dtype) * x, ScanState(tail, h)


class BiMamba(Mamba):
    """Two Mamba-1 scans, one of them backwards, that share the projections and the gate."""

    def __init__(
        self,
        width: int,
        state: int = 16,
        conv: int = 4,
        expand: int = 2,
        rank: int | None = None,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(width, state, conv, expand, rank, backend)
        self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b = _branch(
            expand * width, state, conv, rank or math.ceil(width / 16)
        )

    def forward(self, x: Tensor) -> Tensor:
        x, z = self.in_proj(x).chunk(2, dim=-1)
        there, _ = self._scan(x, None, self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D)
        back, _ = self._scan(
            x.flip(1), None, self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b
        )
        return self.out_proj((there + back.flip(1)) * F.silu(z))

    def extend(self, x: Tensor, state: ScanState | None = None) -> tuple[Tensor, ScanState]:
        raise ValueError("a bidirectional mixer needs all tokens at once; use Mamba to carry state")


class Mamba2(nn.Module):
    """Mamba-2: one decay for a head, so that the scan is made of matrix products."""

    def __init__(
        self,
        width: int,
        state: int = 64,
        conv: int = 4,
        expand: int = 2,
        head: int = 64,
        groups: int = 1,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        inner = expand * width
        if inner % head or (inner // head) % groups:
            raise ValueError(
                f"expand * width must be heads of {head} channels in {groups} equal groups, "
                f"got {inner} channels"
            )
        self.inner, self.head, self.groups, self.state = inner, head, groups, state
        self.backend = backend
        heads, mixed = inner // head, inner + 2 * groups * state
        self.in_proj = nn.Linear(width, inner + mixed + heads, bias=False)  # z, (x, b, c), dt
        self.conv1d = nn.Conv1d(mixed, mixed, conv, groups=mixed)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = GatedRMSNorm(inner, groups)
        self.out_proj = nn.Linear(inner, width, bias=False)
        _init_steps(self.dt_bias)
        with torch.no_grad():
            nn.init.uniform_(self.A_log, 1, 16).log_()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L, D) from the first token on: shaped like x."""
        return self.extend(x)[0]

    def extend(self, x: Tensor, state: ScanState | None = None) -> tuple[Tensor, ScanState]:
        """The outputs for the next tokens x (B, L, D), and what to hand to the call after."""
        mixed = self.conv1d.in_channels
        z, xbc, dt = self.in_proj(x).split([self.inner, mixed, len(self.A_log)], dim=-1)
        xbc, tail = _convolve(self.conv1d, xbc, state)
        x, b, c = xbc.split([self.inner, *2 * [self.groups * self.state]], dim=-1)
        x = rearrange(x, "b l (h p) -> b l h p", p=self.head)
        b, c = (rearrange(v, "b l (g s) -> b l g s", g=self.groups) for v in (b, c))
        dt, a = F.softplus(_wide(dt) + _wide(self.dt_bias)), -_wide(self.A_log).exp()
        y, h = ssd_scan(x, dt, a, b, c, state.h if state else None, self.backend)
        y = rearrange(y + self.D.to(x.dtype)[:, None] * x, "b l h p -> b l (h p)")
        return self.out_proj(self.norm(y, z)), ScanState(tail, h)


class GatedRMSNorm(nn.Module):
    """RMS norm of y silu(z), for each group of channels on its own."""

    def __init__(self, width: int, groups: int = 1, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        y = (y * F.silu(z)).unflatten(-1, (self.groups, -1))
        return F.rms_norm(y, y.shape[-1:], eps=self.eps).flatten(-2) * self.weight


class InOrder(nn.Module):
    """A mixer that reads the tokens of a grid in a given order (N,)."""

    order: Tensor
    undo: Tensor

    def __init__(self, mixer: nn.Module, order: Tensor) -> None:
        super().__init__()
        self.mixer = mixer
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("undo", order.argsort(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x[:, self.order])[:, self.undo]


def _branch(
    inner: int, state: int, conv: int, rank: int
) -> tuple[nn.Conv1d, nn.Linear, nn.Linear, nn.Parameter, nn.Parameter]:
    """What one direction of Mamba-1 owns: convolution, (dt, b, c), dt, decays, skip."""
    x_proj = nn.Linear(inner, rank + 2 * state, bias=False)
    dt_proj = nn.Linear(rank, inner)
    nn.init.uniform_(dt_proj.weight, -(rank**-0.5), rank**-0.5)
    _init_steps(dt_proj.bias)
    decays = torch.arange(1, state + 1, dtype=torch.float32).log().repeat(inner, 1)
    return (
        nn.Conv1d(inner, inner, conv, groups=inner),
        x_proj,
        dt_proj,
        nn.Parameter(decays),
        nn.Parameter(torch.ones(inner)),
    )


def _init_steps(bias: Tensor) -> None:
    """softplus(bias) is log-uniform in [1e-3, 1e-1]."""
    with torch.no_grad():
        steps = nn.init.uniform_(bias, math.log(1e-3), math.log(1e-1)).exp()
        bias.copy_(steps + (-(-steps).expm1()).log())


def _wide(v: Tensor) -> Tensor:
    """Steps and decays are float32 at least: a state is a product of many of them."""
    return v.to(torch.promote_types(v.dtype, torch.float32))


def _convolve(conv: nn.Conv1d, x: Tensor, state: ScanState | None) -> tuple[Tensor, Tensor]:
    """SiLU of the causal convolution of x (B, L, C) behind the tail so far, and the new tail."""
    k = conv.kernel_size[0]
    tail = x.new_zeros(len(x), x.shape[2], k - 1) if state is None else state.tail
    x = torch.cat([tail, rearrange(x, "b l c -> b c l")], dim=2)
    # a copy, since a view would keep all of x alive
    return rearrange(F.silu(conv(x)), "b c l -> b l c"), x[..., x.shape[2] - k + 1 :].clone()
