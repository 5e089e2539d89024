"""Where the norms of a residual stream sit: one choice for every transformer backbone.

Sources: pre-LN as in Dosovitskiy et al. 2021; LayerNorm Scaling: Sun et al. 2025, "The Curse of
Depth in Large Language Models", eq. 4; Peri-LN: Kim et al. 2025, "Peri-LN", eq. 2, without its
norm of the embeddings; Mix-LN: Li et al. 2024, "Mix-LN", with its share of 0.25; RMS: Zhang and
Sennrich 2019; QK-norm: Henry et al. 2020, per head as in Stable Diffusion 3; norms that move with
time: Liu et al. 2024, DiMR.
Letters: B batch, N tokens, D width, F a branch (attention, MLP or SSM), N() a norm.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genvis.config import config
from genvis.nn.time_norms import TimeParameter

POST_SHARE = 0.25


@config
class Norms:
    """place, for layer l = 1, ..., L:

    pre      x + F(N(x))
    scaled   x + F(N(x) / sqrt(l)), after modulation
    peri     x + N(F(N(x)))
    mix      N(x + F(x)) in the first quarter of the layers, pre in the others
    """

    kind: Literal["layer", "rms"] = "layer"
    place: Literal["pre", "scaled", "peri", "mix"] = "pre"
    qk: bool = False  # RMS norms on the queries and keys of every head
    # the network times of the clean and the noise end, between which gains and biases in front of
    # the branches move (TD-LN), beside all else that sees time; null: they stand still
    time: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.time is not None and self.time[0] == self.time[1]:
            raise ValueError(f"time must be two different network times, got {self.time}")

    def tau(self, t: Tensor) -> Tensor | None:
        """Network time t (B,) from -1 at the clean end to 1 at the noise end, for the norms."""
        if self.time is None:
            return None
        clean, noise = self.time
        return 2 * (t - clean) / (noise - clean) - 1

    def residual(
        self, width: int, layer: int, depth: int, eps: float = 1e-6, affine: bool = False
    ) -> tuple["BranchNorm", nn.Module]:
        """The norm in front of a branch of layer `layer` (from 0) and what adds the branch back.

        `affine` gives the first norm a gain and bias; norms that a placement adds always have them,
        because nothing modulates them.
        """
        if self.place == "mix" and layer < POST_SHARE * depth:
            return BranchNorm(width, None, eps, affine=False), PostAdd(self.norm(width, eps))
        factor = (layer + 1) ** -0.5 if self.place == "scaled" else 1.0
        add = PeriAdd(self.norm(width, eps)) if self.place == "peri" else Add()
        kind = BranchNorm if self.time is None else TimeBranchNorm
        return kind(width, self.kind, eps, affine, factor), add

    def norm(self, width: int, eps: float) -> nn.Module:
        return nn.LayerNorm(width, eps) if self.kind == "layer" else nn.RMSNorm(width, eps)


class BranchNorm(nn.Module):
    """What a branch sees of the stream: normalised, modulated by the condition, scaled by depth."""

    def __init__(
        self, width: int, kind: str | None, eps: float, affine: bool, factor: float = 1.0
    ) -> None:
        super().__init__()
        self.width, self.kind, self.eps, self.factor = width, kind, eps, factor
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine and kind == "layer" else None

    def forward(
        self,
        x: Tensor,
        shift: Tensor | None = None,
        scale: Tensor | None = None,
        tau: Tensor | None = None,
    ) -> Tensor:
        """x (B, N, D); shift and scale (B, D); tau (B,), which only `Norms.time` needs."""
        x = self.normalise(x, tau)
        if scale is not None:
            x = x * (1 + scale[:, None])
        if shift is not None:
            x = x + shift[:, None]
        return x if self.factor == 1 else x * self.factor

    def normalise(self, x: Tensor, tau: Tensor | None) -> Tensor:
        if self.kind == "layer":
            return F.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)
        if self.kind == "rms":
            return F.rms_norm(x, (self.width,), self.weight, self.eps)
        return x


class TimeBranchNorm(BranchNorm):
    """With a gain and a bias that move with time, instead of fixed ones."""

    def __init__(
        self, width: int, kind: str | None, eps: float, affine: bool, factor: float = 1.0
    ) -> None:
        super().__init__(width, kind, eps, affine=False, factor=factor)
        self.gain, self.offset = TimeParameter(width, 1.0), TimeParameter(width, 0.0)

    def normalise(self, x: Tensor, tau: Tensor | None) -> Tensor:
        if tau is None:
            raise ValueError("norms.time is set, but this network gives its norms no time")
        return super().normalise(x, tau) * self.gain(tau, x) + self.offset(tau, x)


class Add(nn.Module):
    """x + gate * branch; gate (B, D) or none."""

    def forward(self, x: Tensor, branch: Tensor, gate: Tensor | None = None) -> Tensor:
        return x + (branch if gate is None else gate[:, None] * branch)


class PeriAdd(Add):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, branch: Tensor, gate: Tensor | None = None) -> Tensor:
        return super().forward(x, self.norm(branch), gate)


class PostAdd(PeriAdd):
    def forward(self, x: Tensor, branch: Tensor, gate: Tensor | None = None) -> Tensor:
        return self.norm(Add.forward(self, x, branch, gate))
