"""DiT: a transformer on latent patches, conditioned through adaptive layer norm (adaLN-Zero).

Source: Peebles and Xie 2023, "Scalable Diffusion Models with Transformers", section 3 and the
released code, whose attribute names and initial values these are.
Letters: B batch, C channels, H W map size, p patch, N = (H/p)(W/p) tokens, D width, K classes.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from genvis.checkpoint import load_state
from genvis.config import build, check_arguments, config, renamed
from genvis.nn.embeddings import LabelEmbedder, TimestepEmbedder, sinusoids_2d
from genvis.nn.norms import Norms
from genvis.nn.transformer import MLP, PatchEmbed, SelfAttention, check_map, modulate
from genvis.types import Cond


@config
class DiTConfig:
    size: int | tuple[int, int] = 32  # of the latent map: side, or (height, width)
    channels: int = 4
    patch: int = 2
    width: int = 1152
    depth: int = 28
    heads: int = 16
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    # a label-table row for "no label", which guidance and label dropping need
    null_class: bool = True
    learned_variance: bool = False  # twice the output channels; the second half is the raw variance
    dropout: float = 0.0
    norms: Norms = Norms()

    def __post_init__(self) -> None:
        h, w = self.shape[1:]
        if (
            min(
                h,
                w,
                self.channels,
                self.patch,
                self.width,
                self.depth,
                self.heads,
                self.num_classes,
            )
            < 1
        ):
            raise ValueError(
                "size, channels, patch, width, depth, heads and num_classes must be at least 1"
            )
        if h % self.patch or w % self.patch:
            raise ValueError(f"size must be divisible by patch, got {h} x {w} and {self.patch}")
        if self.width % self.heads:
            raise ValueError(f"width must be divisible by heads, got {self.width} and {self.heads}")
        if self.width % 4:
            raise ValueError(f"width must be divisible by 4 for 2-D positions, got {self.width}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    @property
    def shape(self) -> tuple[int, int, int]:
        h, w = (self.size, self.size) if isinstance(self.size, int) else self.size
        return self.channels, h, w

    def build(self) -> "DiT":
        return DiT(self)


DIT_S_2 = DiTConfig(width=384, depth=12, heads=6, patch=2, learned_variance=True)
DIT_S_4, DIT_S_8 = replace(DIT_S_2, patch=4), replace(DIT_S_2, patch=8)
DIT_B_2 = DiTConfig(width=768, depth=12, heads=12, patch=2, learned_variance=True)
DIT_B_4, DIT_B_8 = replace(DIT_B_2, patch=4), replace(DIT_B_2, patch=8)
DIT_L_2 = DiTConfig(width=1024, depth=24, heads=16, patch=2, learned_variance=True)
DIT_L_4, DIT_L_8 = replace(DIT_L_2, patch=4), replace(DIT_L_2, patch=8)
DIT_XL_2 = DiTConfig(width=1152, depth=28, heads=16, patch=2, learned_variance=True)
DIT_XL_4, DIT_XL_8 = replace(DIT_XL_2, patch=4), replace(DIT_XL_2, patch=8)


class DiT(nn.Module):
    pos_embed: Tensor

    def __init__(self, config: DiTConfig) -> None:
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
        initialize(self)

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
    """Attention and MLP, each modulated and gated by the condition."""

    def __init__(self, config: DiTConfig, layer: int) -> None:
        super().__init__()
        d, norms = config.width, config.norms
        self.norm1, self.add1 = norms.residual(d, layer, config.depth)
        self.attn = SelfAttention(d, config.heads, config.dropout, qk_norm=norms.qk)
        self.norm2, self.add2 = norms.residual(d, layer, config.depth)
        self.mlp = MLP(d, int(d * config.mlp_ratio), config.dropout)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))

    def forward(self, x: Tensor, c: Tensor, tau: Tensor | None = None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = self.add1(x, self.attn(self.norm1(x, shift1, scale1, tau)), gate1)
        return self.add2(x, self.mlp(self.norm2(x, shift2, scale2, tau)), gate2)


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


def initialize(net: Any, keep: Collection[nn.Module] = ()) -> None:
    """The released initial values: every block is the identity and the output is zero.

    net: of `t_embedder`, `y_embedder` and parts with `adaLN_modulation`; layers in `keep` keep what
    they have.
    """
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module not in keep:
            nn.init.xavier_uniform_(module.weight.flatten(1))  # a patch is one long input
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    tables = [] if net.y_embedder is None else [net.y_embedder.embedding_table]
    for layer in (*tables, *net.t_embedder.mlp[::2]):
        nn.init.normal_(layer.weight, std=0.02)
    for part in net.modules():
        if hasattr(part, "adaLN_modulation"):
            nn.init.zeros_(part.adaLN_modulation[1].weight)
        if isinstance(part, FinalLayer):
            nn.init.zeros_(part.linear.weight)


OFFICIAL_ARGUMENTS = {
    "input_size": "size",
    "patch_size": "patch",
    "in_channels": "channels",
    "hidden_size": "width",
    "depth": "depth",
    "num_heads": "heads",
    "mlp_ratio": "mlp_ratio",
    "num_classes": "num_classes",
    "learn_sigma": "learned_variance",
}


def from_official(official: Mapping[str, Any], state: Mapping[str, Tensor]) -> DiT:
    """A DiT from the constructor arguments and state dict of the released class (the keys are the
    same).
    """
    check_arguments(official, (*OFFICIAL_ARGUMENTS, "class_dropout_prob"), "the released DiT")
    # the released table of labels has the extra row only where it drops some
    fields = {"learned_variance": True, "null_class": official.get("class_dropout_prob", 0.1) > 0}
    net = build(DiTConfig, {**fields, **renamed(official, OFFICIAL_ARGUMENTS)}).build()
    load_state(net, state, "official DiT")
    return net
