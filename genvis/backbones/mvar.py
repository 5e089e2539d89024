"""M-VAR: attention inside every scale, and a scan along all of them from coarse to fine.

Source: Ren et al. 2024, "M-VAR: Decoupled Scale-wise Autoregressive Modeling for High-Quality Image
Generation", section 3 and the released code, whose attribute names and initial values these are.
The released network runs its scans again from the first token at every scale; here their states are
carried, so that generation takes time linear in the tokens. Its attention ignores the scales when
it is evaluated on known tokens, which is not copied.
Letters: B rows, n tokens of the scales in one pass, D width, H heads.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from genvis.backbones.scale_text import KV, Cross
from genvis.backbones.scales import (
    OFFICIAL_ARGUMENTS,
    OFFICIAL_TRAINING,
    DropPath,
    Projections,
    ScaleConfig,
    ScaleTransformer,
    block_diagonal,
    initialize,
    scale_gates,
    without_buffers,
)
from genvis.checkpoint import load_state
from genvis.config import ConfigError, build, check_arguments, config, renamed
from genvis.kernels.attention import attention
from genvis.nn.mamba import Mamba2, ScanState
from genvis.nn.transformer import MLP, modulate


@config
class MVARConfig(ScaleConfig):
    # of the scan: state size, taps of the convolution, inner width in D, width of a head, groups
    state: int = 64
    conv: int = 4
    expand: int = 2
    scan_head: int = 64
    groups: int = 1

    def __post_init__(self) -> None:
        ScaleConfig.__post_init__(self)
        if min(self.state, self.conv, self.expand, self.scan_head, self.groups) < 1:
            raise ValueError("state, conv, expand, scan_head and groups must be at least 1")

    def build(self) -> "MVAR":
        return MVAR(self)


MVAR_D12 = MVARConfig(width=768, depth=12, heads=12, drop_path=0.05)
MVAR_D16 = MVARConfig(width=1024, depth=16, heads=16, drop_path=0.1 * 16 / 24)
MVAR_D20 = MVARConfig(width=1280, depth=20, heads=20, drop_path=0.1 * 20 / 24)
MVAR_D24 = MVARConfig(width=1536, depth=24, heads=24, drop_path=0.1, gate_init=1e-4)
MVAR_D30 = MVARConfig(width=1920, depth=30, heads=30, drop_path=0.125, gate_init=1e-5)
MVAR_D32 = MVARConfig(width=2048, depth=32, heads=32, drop_path=0.1 * 32 / 24, gate_init=1e-5)


class MVAR(ScaleTransformer):
    def __init__(self, config: MVARConfig) -> None:
        super().__init__(config)
        blocks = [Block(config, rate) for rate in config.drop_paths]
        self.blocks = nn.ModuleList(blocks)
        initialize(self)
        for block in blocks:
            block.reset_parameters(config.gate_init)

    def pattern(self, scales: range) -> list[int]:
        """The tokens of every scale in the pass."""
        return [self.sizes[k] for k in scales]


class Block(nn.Module):
    """Attention, to the text too where there is one, scan and MLP, modulated and gated by the
    condition.
    """

    def __init__(self, config: MVARConfig, drop_path: float) -> None:
        super().__init__()
        d = config.width
        self.norm = nn.LayerNorm(d, config.eps, elementwise_affine=False)
        self.attn = Attention(d, config.heads, config.attn_l2_norm)
        self.cross = Cross(d, config.heads, config.eps) if config.text else None
        self.mamba = Mamba2(
            d, config.state, config.conv, config.expand, config.scan_head, config.groups
        )
        self.ffn = MLP(d, round(d * config.mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(d, 9 * d))

    def reset_parameters(self, gate_init: float) -> None:
        """After the common initial values. The gate of the MLP is not small, as in the release."""
        rows = self.ada_lin.get_parameter("1.weight")
        scale_gates(rows, 2 * rows.shape[1], gate_init)
        nn.init.trunc_normal_(self.mamba.conv1d.weight, std=0.02)
        nn.init.zeros_(self.mamba.conv1d.get_parameter("bias"))

    def forward(
        self,
        x: Tensor,
        c: Tensor,
        sizes: list[int],
        memory: tuple[ScanState, KV | None] | None,
        *text: Tensor,
    ) -> tuple[Tensor, tuple[ScanState, KV | None]]:
        """x (B, n, D) of scales with so many tokens each, and the state of the scan behind them and
        the keys and values of the text.
        """
        scanned, read = memory or (None, None)
        modulation = self.ada_lin(c).chunk(9, dim=1)
        (gate1, gate2, gate3), scale, shift = modulation[:3], modulation[3:6], modulation[6:]
        out = self.attn(modulate(self.norm(x), shift[0], scale[0]), sizes)
        x = x + self.drop_path(gate1[:, None] * out)
        if self.cross is not None:
            x, read = self.cross(x, read, *text)
        out, scanned = self.mamba.extend(modulate(self.norm(x), shift[1], scale[1]), scanned)
        x = x + self.drop_path(gate2[:, None] * out)
        out = self.ffn(modulate(self.norm(x), shift[2], scale[2]))
        return x + self.drop_path(gate3[:, None] * out), (scanned, read)


class Attention(Projections):
    def forward(self, x: Tensor, sizes: list[int]) -> Tensor:
        """Every scale of x (B, n, D) attends to itself."""
        scales = zip(*(part.split(sizes, dim=2) for part in self.split(x)), strict=True)
        return self.merge(torch.cat([attention(q, k, v) for q, k, v in scales], dim=2))


OFFICIAL_MAMBA = {
    "d_state": "state",
    "d_conv": "conv",
    "expand": "expand",
    "headdim": "scan_head",
    "ngroups": "groups",
}
ONLY_VALUES = {"rmsnorm": True, "norm_before_gate": False, "norm_eps": 1e-5}


def from_official(official: Mapping[str, Any], state: Mapping[str, Tensor]) -> MVAR:
    """An M-VAR from the constructor arguments and state dict of the released class, whose scan is
    fixed; `mamba` says otherwise. Without `attn_l2_norm`, the state dict tells whether scores are
    cosines.
    """
    known = (*OFFICIAL_ARGUMENTS, "shared_aln", "mamba", *OFFICIAL_TRAINING)
    check_arguments(official, known, "the released MVAR")
    if official.get("shared_aln"):
        raise ConfigError("shared_aln: the released MVAR cannot be built with it")
    scan = official.get("mamba") or {}
    check_arguments(scan, (*OFFICIAL_MAMBA, *ONLY_VALUES), "mamba of the released MVAR")
    for name, value in ONLY_VALUES.items():
        if (given := scan.get(name, value)) != value:
            raise ConfigError(f"mamba.{name} must be {value}, as in the release, got {given!r}")
    fields = {
        "attn_l2_norm": "blocks.0.attn.scale_mul_1H11" in state,
        **renamed(official, OFFICIAL_ARGUMENTS),
        **renamed(scan, OFFICIAL_MAMBA),
    }
    net = build(MVARConfig, fields).build()
    seen = block_diagonal(net.lvl_1L[0])
    load_state(net, without_buffers(state, net, seen, "official M-VAR"), "official M-VAR")
    return net
