"""VAR: a transformer that predicts an image's token maps from coarse to fine, a map at a time.

Source: Tian et al. 2024, "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale
Prediction", section 3.3 and the released code, whose attribute names and initial values these are;
text by cross-attention: Han et al. 2024, "Infinity".
Letters: B rows, n tokens of the scales in one pass, M of those before, L all, D width, H heads.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from genvis.backbones.scale_text import KV, Cross
from genvis.backbones.scales import (
    OFFICIAL_ARGUMENTS,
    OFFICIAL_TRAINING,
    SCALES_512,
    DropPath,
    Projections,
    ScaleConfig,
    ScaleTransformer,
    block_causal,
    initialize,
    scale_gates,
    without_buffers,
)
from genvis.checkpoint import load_state
from genvis.config import build, check_arguments, config, renamed
from genvis.kernels.attention import attention
from genvis.nn.transformer import MLP, modulate


@config
class VARConfig(ScaleConfig):
    shared_aln: bool = False  # one modulation for all blocks, with an offset in each

    def build(self) -> "VAR":
        return VAR(self)


VAR_D12 = VARConfig(width=768, depth=12, heads=12, drop_path=0.05)
VAR_D16 = VARConfig(width=1024, depth=16, heads=16, drop_path=0.1 * 16 / 24)
VAR_D20 = VARConfig(width=1280, depth=20, heads=20, drop_path=0.1 * 20 / 24)
VAR_D24 = VARConfig(width=1536, depth=24, heads=24, drop_path=0.1, gate_init=1e-4)
VAR_D30 = VARConfig(width=1920, depth=30, heads=30, drop_path=0.125, gate_init=1e-5)
VAR_D36_S = VARConfig(
    width=2304,
    depth=36,
    heads=36,
    drop_path=0.15,
    gate_init=5e-6,
    scales=SCALES_512,
    shared_aln=True,
)


class VAR(ScaleTransformer):
    config: VARConfig

    def __init__(self, config: VARConfig) -> None:
        super().__init__(config)
        d, kind = config.width, Block
        if config.shared_aln:
            self.shared_ada_lin, kind = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d)), SharedBlock
        blocks = [kind(config, rate) for rate in config.drop_paths]
        self.blocks = nn.ModuleList(blocks)
        initialize(self)
        for block in blocks:
            block.reset_gates(config.gate_init)

    def pattern(self, scales: range) -> Tensor | None:
        """Who sees whom (n, n); None: everybody, as in one scale with the keys of those below."""
        return block_causal(self.lvl_1L[0, : self.ends[scales.stop]]) if len(scales) > 1 else None


class Block(nn.Module):
    """Attention, to the text too where there is one, and MLP, modulated and gated by the
    condition.
    """

    def __init__(self, config: VARConfig, drop_path: float) -> None:
        super().__init__()
        d = config.width
        self.norm = nn.LayerNorm(d, config.eps, elementwise_affine=False)
        self.attn = Attention(d, config.heads, config.attn_l2_norm)
        self.cross = Cross(d, config.heads, config.eps) if config.text else None
        self.ffn = MLP(d, round(d * config.mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.build_modulation(d)

    def build_modulation(self, d: int) -> None:
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))

    def reset_gates(self, gate_init: float) -> None:
        """After the common initial values."""
        rows = self.ada_lin.get_parameter("1.weight")
        scale_gates(rows, 2 * rows.shape[1], gate_init)

    def modulation(self, c: Tensor) -> tuple[Tensor, ...]:
        """Two gates, two scales, two shifts, (B, D) each."""
        return self.ada_lin(c).chunk(6, dim=1)

    def forward(
        self,
        x: Tensor,
        c: Tensor,
        mask: Tensor | None,
        memory: tuple[KV, KV | None] | None,
        *text: Tensor,
    ) -> tuple[Tensor, tuple[KV, KV | None]]:
        """x (B, n, D) and, to be carried to the next scale, the keys and values of all so far and
        of the text.
        """
        own, read = memory or (None, None)
        gate1, gate2, scale1, scale2, shift1, shift2 = self.modulation(c)
        out, own = self.attn(modulate(self.norm(x), shift1, scale1), mask, own)
        x = x + self.drop_path(gate1[:, None] * out)
        if self.cross is not None:
            x, read = self.cross(x, read, *text)
        out = self.ffn(modulate(self.norm(x), shift2, scale2))
        return x + self.drop_path(gate2[:, None] * out), (own, read)


class SharedBlock(Block):
    """Its modulation is the network's and an offset."""

    def build_modulation(self, d: int) -> None:
        self.ada_gss = nn.Parameter(torch.empty(1, 1, 6, d))

    def reset_gates(self, gate_init: float) -> None:
        nn.init.normal_(self.ada_gss, std=self.ada_gss.shape[-1] ** -0.5)
        scale_gates(self.ada_gss[0, 0], 2, gate_init)

    def modulation(self, c: Tensor) -> tuple[Tensor, ...]:
        return (self.ada_gss[0] + c.unflatten(1, (6, -1))).unbind(1)


class Attention(Projections):
    def forward(self, x: Tensor, mask: Tensor | None, before: KV | None) -> tuple[Tensor, KV]:
        """x (B, n, D) attends to itself and to `before`; all keys and values so far come back."""
        q, k, v = self.split(x)
        if before is not None:
            k, v = torch.cat([before[0], k], dim=2), torch.cat([before[1], v], dim=2)
        return self.merge(attention(q, k, v, mask)), (k, v)


def from_official(official: Mapping[str, Any], state: Mapping[str, Tensor]) -> VAR:
    """A VAR from the constructor arguments and state dict of the released class. Without
    `attn_l2_norm`, the state dict tells whether scores are cosines.
    """
    known = (*OFFICIAL_ARGUMENTS, "shared_aln", *OFFICIAL_TRAINING)
    check_arguments(official, known, "the released VAR")
    fields = {
        "attn_l2_norm": "blocks.0.attn.scale_mul_1H11" in state,
        "shared_aln": official.get("shared_aln", False),
        **renamed(official, OFFICIAL_ARGUMENTS),
    }
    net = build(VARConfig, fields).build()
    seen = block_causal(net.lvl_1L[0])
    load_state(net, without_buffers(state, net, seen, "official VAR"), "official VAR")
    return net
