"""ZigMa: Mamba layers that take turns at zigzag paths over the grid, conditioned through adaLN.

Source: Hu et al. 2024, "ZigMa: A DiT-style Zigzag Mamba Diffusion Model", section 4 and the
released code, whose attribute names and initial values these are. The released network multiplies
its time, in [0, 1], by 1,000; here t is the product.
Letters: B batch, C channels, H W map size, p patch, N = (H/p)(W/p) tokens, D width, K classes,
L text tokens of width S.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from genvis.checkpoint import load_state
from genvis.config import ConfigError, build, check_arguments, config, renamed
from genvis.kernels.attention import attention
from genvis.nn.embeddings import LabelEmbedder, TimestepEmbedder, sinusoids_2d
from genvis.nn.mamba import BiMamba, Mamba
from genvis.nn.scan_orders import SCAN_ORDERS, scan_orders
from genvis.nn.text import text_or_null
from genvis.nn.transformer import PatchEmbed, check_map, modulate
from genvis.types import Cond

TEXT_HEADS, TEXT_HEAD_WIDTH = 8, 64


@config
class ZigMaConfig:
    size: int | tuple[int, int] = 32  # of the latent map: side, or (height, width)
    channels: int = 4
    patch: int = 2
    width: int = 768
    depth: int = 24
    scan: str = "zigzag"  # one of genvis.nn.scan_orders; layer i takes its row i mod paths
    paths: int | None = None  # the first so many rows; None: all
    both_ways: bool = False  # a second, backward scan in every layer, as in Vision Mamba
    state: int = 16
    conv: int = 4
    expand: int = 2
    positions: Literal["none", "fixed", "learned"] = "learned"
    norm: Literal["layer", "rms"] = "rms"
    eps: float = 1e-5
    num_classes: int = 1000  # 0: no labels
    null_class: bool = True  # a label-table row for "no label"
    text_width: int = 0  # of cond.text; 0: no cross-attention

    def __post_init__(self) -> None:
        h, w = self.shape[1:]
        sizes = (h, w, self.channels, self.patch, self.width, self.depth)
        if min(*sizes, self.state, self.conv, self.expand) < 1:
            raise ValueError(
                "size, channels, patch, width, depth, state, conv and expand must be at least 1"
            )
        if min(self.num_classes, self.text_width) < 0:
            raise ValueError("num_classes and text_width must be at least 0")
        if self.num_classes and self.text_width:
            raise ValueError("num_classes or text_width must be 0: labels or text, not both")
        if h % self.patch or w % self.patch:
            raise ValueError(f"size must be divisible by patch, got {h} x {w} and {self.patch}")
        if self.positions == "fixed" and self.width % 4:
            raise ValueError(f"width must be divisible by 4 for 2-D positions, got {self.width}")
        if self.scan not in SCAN_ORDERS:
            raise ValueError(f"scan must be one of {', '.join(SCAN_ORDERS)}, got {self.scan!r}")
        if self.paths is not None and not 1 <= self.paths <= len(SCAN_ORDERS[self.scan](1, 1)):
            rows = len(SCAN_ORDERS[self.scan](1, 1))
            raise ValueError(f"{self.scan} has {rows} paths, got paths {self.paths}")

    @property
    def shape(self) -> tuple[int, int, int]:
        h, w = (self.size, self.size) if isinstance(self.size, int) else self.size
        return self.channels, h, w

    @property
    def grid(self) -> tuple[int, int]:
        """Token rows and columns."""
        return self.shape[1] // self.patch, self.shape[2] // self.patch

    def build(self) -> "ZigMa":
        return ZigMa(self)


ZIGMA_S_2 = ZigMaConfig(width=368, depth=24)
ZIGMA_B_2 = ZigMaConfig(width=768, depth=24)
ZIGMA_M_2 = ZigMaConfig(width=768, depth=48)
ZIGMA_L_2 = ZigMaConfig(width=1024, depth=48)
ZIGMA_H_2 = ZigMaConfig(width=1536, depth=48)
ZIGMA_S_1, ZIGMA_B_1 = replace(ZIGMA_S_2, patch=1), replace(ZIGMA_B_2, patch=1)
ZIGMA_L_1, ZIGMA_H_1 = replace(ZIGMA_L_2, patch=1), replace(ZIGMA_H_2, patch=1)


class ZigMa(nn.Module):
    def __init__(self, config: ZigMaConfig) -> None:
        super().__init__()
        self.config = config
        c, d, p = config.channels, config.width, config.patch
        self.x_embedder = PatchEmbed(c, d, p)
        self.t_embedder = TimestepEmbedder(d)
        self.y_embedder: nn.Module = Unconditional()
        if config.text_width:
            self.y_embedder = Text(config.text_width, d)
        elif config.num_classes:
            self.y_embedder = Label(config.num_classes, d, config.null_class)
        if config.positions == "fixed":
            self.register_buffer("pos_embed", sinusoids_2d(d, *config.grid)[None])
        elif config.positions == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, math.prod(config.grid), d))
        orders = scan_orders(config.scan, *config.grid)[: config.paths]
        block = TextBlock if config.text_width else Block
        self.blocks = nn.ModuleList(
            [block(config, orders[layer % len(orders)]) for layer in range(config.depth)]
        )
        self.norm_f = norm(config)
        self.final_layer = FinalLayer(d, p * p * c)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The released initial values; those of the mixers and gates are set in the blocks."""
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        for layer in self.modules():
            if isinstance(layer, nn.Embedding):
                nn.init.normal_(layer.weight, std=0.02)
        for layer in self.t_embedder.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        plain = (self.x_embedder, self.t_embedder, self.y_embedder, self.final_layer)
        for layer in (layer for part in plain for layer in part.modules()):
            if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Network output for x (B, C, H, W) at network time t (B,) in [0, 1000]; shaped like x."""
        check_map(x, self.config.shape)
        h, p = self.config.grid[0], self.config.patch
        x = self.x_embedder(x)  # (B, N, D)
        if self.config.positions != "none":
            x = x + self.pos_embed
        c, text = self.y_embedder(cond, len(x))
        c = self.t_embedder(t) + c  # (B, D)
        residual = torch.zeros_like(x)
        for block in self.blocks:
            x, residual = block(x, residual, c, text)
        x = self.final_layer(self.norm_f(residual + x))
        return rearrange(x, "b (h w) (p q c) -> b c (h p) (w q)", h=h, p=p, q=p)


class Block(nn.Module):
    """A scan of the normalised stream; what it returns is added to the stream by the next block."""

    order: Tensor
    undo: Tensor
    parts = 3  # of the modulation

    def __init__(self, config: ZigMaConfig, order: Tensor) -> None:
        super().__init__()
        mixer = BiMamba if config.both_ways else Mamba
        self.mixer = mixer(config.width, config.state, config.conv, config.expand)
        self.norm = norm(config)
        modulation = nn.Linear(config.width, self.parts * config.width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), modulation)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("undo", order.argsort(), persistent=False)
        self.mixer.out_proj.weight.data /= math.sqrt(config.depth)
        nn.init.zeros_(modulation.weight)  # every gate is closed
        nn.init.zeros_(modulation.bias)

    def forward(
        self, x: Tensor, residual: Tensor, c: Tensor, text: "Tokens | None"
    ) -> tuple[Tensor, Tensor]:
        residual = residual + x
        x = self.norm(residual)
        shift, scale, gate, *rest = self.adaLN_modulation(c).chunk(self.parts, dim=1)
        scanned = self.mixer(modulate(x, shift, scale)[:, self.order])[:, self.undo]
        return self.attend(x + gate[:, None] * scanned, text, *rest), residual

    def attend(self, x: Tensor, text: "Tokens | None") -> Tensor:
        return x


class TextBlock(Block):
    """A block that then attends to the text."""

    parts = 6

    def __init__(self, config: ZigMaConfig, order: Tensor) -> None:
        super().__init__(config, order)
        self.norm_msa = nn.LayerNorm(config.width, eps=1e-6, elementwise_affine=False)
        self.msa = CrossAttention(config.width)

    def attend(  # type: ignore[override]
        self, x: Tensor, text: "Tokens", shift: Tensor, scale: Tensor, gate: Tensor
    ) -> Tensor:
        return x + gate[:, None] * self.msa(modulate(self.norm_msa(x), shift, scale), *text)


class CrossAttention(nn.Module):
    """Attention of x (B, N, D) to text (B, L, D), where it is seen (B, L)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = TEXT_HEADS * TEXT_HEAD_WIDTH
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(width, inner, bias=False)
        self.to_v = nn.Linear(width, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, width))

    def forward(self, x: Tensor, text: Tensor, seen: Tensor | None) -> Tensor:
        q, k, v = (
            rearrange(value, "b n (h d) -> b h n d", h=TEXT_HEADS)
            for value in (self.to_q(x), self.to_k(text), self.to_v(text))
        )
        out = attention(q, k, v, None if seen is None else seen[:, None, None])
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm_final(x))


Tokens = tuple[Tensor, Tensor | None]  # text (B, L, D), where it is seen (B, L); None: everywhere


class Unconditional(nn.Module):
    def forward(self, cond: Cond, rows: int) -> tuple[float, None]:
        return 0.0, None


class Label(LabelEmbedder):
    def forward(self, cond: Cond, rows: int) -> tuple[Tensor, None]:  # type: ignore[override]
        return super().forward(cond), None


class Text(nn.Linear):
    """The mean token (B, D) and the tokens; a row that is dropped takes the text of cond.negative,
    or zeros.
    """

    def forward(self, cond: Cond, rows: int) -> tuple[Tensor, Tokens]:  # type: ignore[override]
        text, seen = text_or_null(cond, rows, self.in_features, self.weight)
        tokens = super().forward(text)
        if seen is None:
            return tokens.mean(1), (tokens, None)
        share = (seen / seen.sum(1, keepdim=True))[..., None]
        return (share.to(tokens.dtype) * tokens).sum(1), (tokens, seen)


def norm(config: ZigMaConfig) -> nn.Module:
    kind = nn.LayerNorm if config.norm == "layer" else nn.RMSNorm
    return kind(config.width, config.eps)


OFFICIAL_ARGUMENTS = {
    "img_dim": "size",
    "in_channels": "channels",
    "patch_size": "patch",
    "embed_dim": "width",
    "depth": "depth",
    "norm_epsilon": "eps",
}
OFFICIAL_SSM = {"d_state": "state", "d_conv": "conv", "expand": "expand"}
OFFICIAL_POSITIONS = ("none", "fixed", "learned", "none")  # 3 adds tables that stay zero
OFFICIAL_TRAINING = (  # what does not change the network's function
    *("drop_path_rate", "initializer_cfg", "m_init", "use_jit", "use_checkpoint"),
    *("fused_add_norm", "residual_in_fp32", "device", "dtype", "n_context_token"),
)

OFFICIAL_OTHERS = (
    *("use_pe", "rms_norm", "scan_type", "has_text", "d_context", "num_classes", "ssm_cfg"),
    *("video_frames", "tpe"),
)


def from_official(official: Mapping[str, Any], state: Mapping[str, Tensor]) -> ZigMa:
    """A ZigMa from the constructor arguments and state dict of the released class. Without
    `rms_norm`, the state dict tells which norm it has.
    """
    known = (*OFFICIAL_ARGUMENTS, *OFFICIAL_OTHERS, *OFFICIAL_TRAINING)
    check_arguments(official, known, "the released ZigMa")
    for name in ("video_frames", "tpe"):
        if official.get(name):
            raise ConfigError(f"{name}={official[name]!r}: videos are not implemented")
    fields: dict[str, Any] = {"patch": 1, "num_classes": 0, "null_class": False}
    fields["positions"] = OFFICIAL_POSITIONS[official.get("use_pe", 0)]
    rms = official.get("rms_norm", "norm_f.bias" not in state)
    fields |= {"norm": "rms" if rms else "layer", **_scan(official.get("scan_type", "v2"))}
    if official.get("has_text", False):
        fields["text_width"] = official.get("d_context", 0)
    else:
        fields["num_classes"] = max(official.get("num_classes", -1), 0)
    scan = official.get("ssm_cfg") or {}
    check_arguments(scan, OFFICIAL_SSM, "ssm_cfg of the released ZigMa")
    fields |= renamed(scan, OFFICIAL_SSM) | renamed(official, OFFICIAL_ARGUMENTS)
    net = build(ZigMaConfig, fields).build()
    load_state(net, state, "official ZigMa")
    return net


def _scan(name: str) -> dict[str, Any]:
    """Our fields for the released `scan_type`: v1, v2, or zigzagN8 and its like."""
    if name in ("v1", "v2"):
        return {"scan": "raster", "both_ways": name == "v2"}
    found = re.fullmatch(r"(zigzag|sweep|jpeg|hilbert)N(\d+)", name)
    if not found:
        raise ConfigError(f"scan_type must be v1, v2, zigzagN8, hilbertN8 or alike, got {name!r}")
    scan = "hilbert_ranks" if found[1] == "hilbert" else found[1]
    return {"scan": scan, "paths": int(found[2])}
