"""DiM: a diffusion transformer in which three of four mixers are Mamba scans over the grid.

The block is DiT's (Peebles and Xie 2023, "Scalable Diffusion Models with Transformers": adaLN-Zero,
mixer, MLP). That a little attention helps is from Phung et al. 2024, "DiMSUM"; that layers take
turns at cheap one-way orders, from Hu et al. 2024, "ZigMa", and that four plain ones suffice, from
DiMSUM's ablation; the scan is Mamba-2's (Dao and Gu 2024) or Mamba-1's (Gu and Dao 2023).
Letters: B batch, C channels, H W map size, p patch, N = (H/p)(W/p) tokens, D width, K classes.
"""

from dataclasses import replace
from typing import Literal

from einops import rearrange
from torch import Tensor, nn

from genvis.backbones.dit import FinalLayer, initialize
from genvis.config import config
from genvis.nn.embeddings import LabelEmbedder, TimestepEmbedder, sinusoids_2d
from genvis.nn.mamba import InOrder, Mamba, Mamba2
from genvis.nn.norms import Norms
from genvis.nn.scan_orders import SCAN_ORDERS, scan_orders
from genvis.nn.transformer import MLP, PatchEmbed, SelfAttention, check_map
from genvis.types import Cond


@config
class DiMConfig:
    size: int | tuple[int, int] = 32  # of the latent map: side, or (height, width)
    channels: int = 4
    patch: int = 2
    width: int = 1152
    depth: int = 28
    mixer: Literal["mamba", "mamba2"] = "mamba2"
    scan: str = "cross"  # one of genvis.nn.scan_orders: the scanning layers take turns at its rows
    state: int = 64  # of each channel; Mamba-1 is usually given 16
    head: int = 64  # channels of a head of Mamba-2
    attention_every: int = 4  # layers; 0: no attention
    heads: int = 16  # of attention
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    # a label-table row for "no label", which guidance and label dropping need
    null_class: bool = True
    learned_variance: bool = False  # twice the output channels; the second half is the raw variance
    dropout: float = 0.0
    norms: Norms = Norms()

    def __post_init__(self) -> None:
        h, w = self.shape[1:]
        sizes = (h, w, self.channels, self.patch, self.width, self.depth, self.state, self.head)
        if min(*sizes, self.heads, self.num_classes) < 1:
            raise ValueError(
                "size, channels, patch, width, depth, state, head, heads and num_classes must be "
                "at least 1"
            )
        if h % self.patch or w % self.patch:
            raise ValueError(f"size must be divisible by patch, got {h} x {w} and {self.patch}")
        if self.width % 4:
            raise ValueError(f"width must be divisible by 4 for 2-D positions, got {self.width}")
        if self.scan not in SCAN_ORDERS:
            raise ValueError(f"scan must be one of {', '.join(SCAN_ORDERS)}, got {self.scan!r}")
        if self.mixer == "mamba2" and 2 * self.width % self.head:
            raise ValueError(
                f"twice the width must be divisible by head, got {self.width} and {self.head}"
            )
        if self.attention_every < 0:
            raise ValueError(f"attention_every must be at least 0, got {self.attention_every}")
        if self.attention_every and self.width % self.heads:
            raise ValueError(f"width must be divisible by heads, got {self.width} and {self.heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    @property
    def shape(self) -> tuple[int, int, int]:
        h, w = (self.size, self.size) if isinstance(self.size, int) else self.size
        return self.channels, h, w

    def build(self) -> "DiM":
        return DiM(self)


DIM_S_2 = DiMConfig(width=384, depth=12, heads=6)
DIM_B_2 = DiMConfig(width=768, depth=12, heads=12)
DIM_L_2 = DiMConfig(width=1024, depth=24, heads=16)
DIM_XL_2 = DiMConfig(width=1152, depth=28, heads=16)  # ImageNet 256
DIM_DIGITS = replace(
    DIM_S_2, size=8, channels=1, width=96, depth=6, heads=4, state=16, head=32, num_classes=10
)


class DiM(nn.Module):
    pos_embed: Tensor

    def __init__(self, config: DiMConfig) -> None:
        super().__init__()
        self.config = config
        c, h, w = config.shape
        d, p = config.width, config.patch
        self.x_embedder = PatchEmbed(c, d, p)
        self.t_embedder = TimestepEmbedder(d)
        self.y_embedder = LabelEmbedder(config.num_classes, d, config.null_class)
        self.register_buffer("pos_embed", sinusoids_2d(d, h // p, w // p)[None])
        self.blocks = nn.ModuleList([Block(config, layer) for layer in range(config.depth)])
        self.final_layer = FinalLayer(d, p * p * c * (1 + config.learned_variance))
        scans = (m for m in self.modules() if isinstance(m, Mamba | Mamba2))
        initialize(self, keep={part for scan in scans for part in scan.modules()})

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Network output for x (B, C, H, W) at network time t (B,): (B, C, H, W), or 2C with
        learned variance.
        """
        check_map(x, self.config.shape)
        h, p = x.shape[2] // self.config.patch, self.config.patch
        x = self.x_embedder(x) + self.pos_embed  # (B, N, D)
        c = self.t_embedder(t) + self.y_embedder(cond)  # (B, D)
        tau = self.config.norms.tau(t)  # (B,) or None
        for block in self.blocks:
            x = block(x, c, tau)
        return rearrange(
            self.final_layer(x, c), "b (h w) (p q c) -> b c (h p) (w q)", h=h, p=p, q=p
        )


class Block(nn.Module):
    """A scan or attention, then an MLP, each modulated and gated by the condition."""

    def __init__(self, config: DiMConfig, layer: int) -> None:
        super().__init__()
        d, norms = config.width, config.norms
        self.norm1, self.add1 = norms.residual(d, layer, config.depth)
        self.mixer = mixer(config, layer)
        self.norm2, self.add2 = norms.residual(d, layer, config.depth)
        self.mlp = MLP(d, int(d * config.mlp_ratio), config.dropout)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))

    def forward(self, x: Tensor, c: Tensor, tau: Tensor | None = None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = self.add1(x, self.mixer(self.norm1(x, shift1, scale1, tau)), gate1)
        return self.add2(x, self.mlp(self.norm2(x, shift2, scale2, tau)), gate2)


def mixer(config: DiMConfig, layer: int) -> nn.Module:
    """What mixes the tokens in layer `layer` (from 0)."""
    d, every = config.width, config.attention_every
    if every and (layer + 1) % every == 0:
        return SelfAttention(d, config.heads, config.dropout, qk_norm=config.norms.qk)
    orders = scan_orders(config.scan, *(side // config.patch for side in config.shape[1:]))
    scans_before = layer - (layer // every if every else 0)
    scan = (
        Mamba2(d, config.state, head=config.head)
        if config.mixer == "mamba2"
        else Mamba(d, config.state)
    )
    return InOrder(scan, orders[scans_before % len(orders)])
