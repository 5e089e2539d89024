"""PixArt: a DiT that reads texts by cross-attention, with one modulation for all blocks.

Source: Chen et al. 2023, "PixArt-alpha: Fast Training of Diffusion Transformer for Photorealistic
Text-to-Image Synthesis", section 2.3 (cross-attention, adaLN-single, micro-conditions) and the
released code, whose attribute names and initial values these are.
Letters: B batch, C channels, H W map size, p patch, N = (H/p)(W/p) tokens, D width, L text tokens
of width S, T tokens of the null caption.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from genvis.checkpoint import load_state
from genvis.config import ConfigError, build, check_arguments, config, renamed
from genvis.nn.embeddings import TimestepEmbedder, sinusoids_2d
from genvis.nn.norms import Norms
from genvis.nn.text import text_or_null
from genvis.nn.transformer import (
    MLP,
    CrossAttention,
    PatchEmbed,
    SelfAttention,
    check_map,
    modulate,
)
from genvis.types import Cond


@config
class PixArtConfig:
    size: int | tuple[int, int] = 32  # of the latent map: side, or (height, width)
    channels: int = 4
    patch: int = 2
    width: int = 1152
    depth: int = 28
    heads: int = 16
    mlp_ratio: float = 4.0
    text_width: int = 4096  # of cond.text
    text_tokens: int = 120  # of the null caption, and at most of a text
    # False: no null caption; rows without a text take that of cond.negative, or else zeros
    null_caption: bool = True
    # what the coordinates of rows and of columns span, at every size of the map; None: one a token
    span: float | None = None
    # of the image, to a side of a map cell: the image's size is then a condition too; 0: it is not
    pixels: int = 0
    learned_variance: bool = False  # twice the output channels; the second half is the raw variance
    norms: Norms = Norms()

    def __post_init__(self) -> None:
        h, w = self.shape[1:]
        sizes = (h, w, self.channels, self.patch, self.width, self.depth, self.heads)
        if min(*sizes, self.text_width, self.text_tokens) < 1:
            raise ValueError(
                "size, channels, patch, width, depth, heads, text_width and text_tokens must be "
                "at least 1"
            )
        if h % self.patch or w % self.patch:
            raise ValueError(f"size must be divisible by patch, got {h} x {w} and {self.patch}")
        if self.width % self.heads:
            raise ValueError(f"width must be divisible by heads, got {self.width} and {self.heads}")
        if self.width % 4:
            raise ValueError(f"width must be divisible by 4 for 2-D positions, got {self.width}")
        if self.pixels < 0 or (self.pixels and self.width % 3):
            raise ValueError(
                "pixels must be at least 0, and 0 where 3 does not divide width, "
                f"got {self.pixels} and {self.width}"
            )
        if self.span is not None and not self.span > 0:
            raise ValueError(f"span must be positive, got {self.span}")

    @property
    def shape(self) -> tuple[int, int, int]:
        h, w = (self.size, self.size) if isinstance(self.size, int) else self.size
        return self.channels, h, w

    @property
    def num_classes(self) -> int:
        return 0

    def build(self) -> "PixArt":
        return PixArt(self)


PIXART_XL_2 = PixArtConfig(learned_variance=True)  # 256 px
PIXART_XL_2_512 = replace(PIXART_XL_2, size=64)
PIXART_XL_2_1024 = replace(PIXART_XL_2, size=128, span=32.0, pixels=8)  # of any aspect ratio


class PixArt(nn.Module):
    pos_embed: Tensor

    def __init__(self, config: PixArtConfig) -> None:
        super().__init__()
        self.config = config
        c, h, w = config.shape
        d, p = config.width, config.patch
        self.x_embedder = PatchEmbed(c, d, p)
        self.t_embedder = TimestepEmbedder(d)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))
        self.y_embedder = CaptionEmbedder(config)
        if config.pixels:
            self.csize_embedder = TimestepEmbedder(d // 3)
            self.ar_embedder = TimestepEmbedder(d // 3)
        positions = sinusoids_2d(d, h // p, w // p, config.span)[None]
        self.register_buffer("pos_embed", positions, persistent=False)  # other maps, same weights
        self.blocks = nn.ModuleList([Block(config, layer) for layer in range(config.depth)])
        self.final_layer = FinalLayer(d, p * p * c * (1 + config.learned_variance))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The released initial values: the output is zero and no block sees the text. But y_proj
        fits its widths, where the release has 0.02: that is right from 4096 to 1152, and lets so
        little of a text into small networks that they do not learn it for thousands of steps.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1))  # a patch is one long input
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        embedders = [part for part in self.modules() if isinstance(part, TimestepEmbedder)]
        mlps = [layer for part in embedders for layer in part.mlp[::2]]
        for layer in (*mlps, self.t_block[1]):
            nn.init.normal_(layer.get_parameter("weight"), std=0.02)
        for name, parameter in self.named_parameters():
            if name.endswith("scale_shift_table"):
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            elif name.endswith(("cross_attn.proj.weight", "final_layer.linear.weight")):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Network output for x (B, C, H, W) at network time t (B,) and cond.text (B, L, S), of
        which tokens outside of cond.text_mask do not count: (B, C, H, W), or 2C with learned
        variance.

        Rows that are dropped, or whose text has no token, take the null caption, all T tokens of
        it. (In the release it is cut to the length of the prompt that it stands for.)
        """
        check_map(x, self.config.shape)
        h, p = x.shape[2] // self.config.patch, self.config.patch
        text, seen = self.y_embedder(cond, len(x))  # (B, L, D), (B, L) or None
        x = self.x_embedder(x) + self.pos_embed  # (B, N, D)
        c = self.t_embedder(t)  # (B, D)
        if self.config.pixels:
            c = c + self.image_size(t.device)
        modulation = rearrange(self.t_block(c), "b (six d) -> b six d", six=6)
        tau = self.config.norms.tau(t)  # (B,) or None
        for block in self.blocks:
            x = block(x, modulation, text, seen, tau)
        return rearrange(
            self.final_layer(x, c), "b (h w) (p q c) -> b c (h p) (w q)", h=h, p=p, q=p
        )

    def image_size(self, device: torch.device) -> Tensor:
        """The image's height, width and aspect ratio, in pixels, embedded side by side (D,)."""
        h, w = (float(self.config.pixels * side) for side in self.config.shape[1:])
        size = self.csize_embedder(torch.tensor([h, w], device=device))
        return torch.cat([*size, *self.ar_embedder(torch.tensor([h / w], device=device))])


class CaptionEmbedder(nn.Module):
    """Texts to tokens of the network's width, and the caption of those who have none."""

    y_embedding: Tensor | None

    def __init__(self, config: PixArtConfig) -> None:
        super().__init__()
        self.tokens, self.width = config.text_tokens, config.text_width
        self.y_proj = MLP(self.width, config.width, out=config.width)
        null = None
        if config.null_caption:  # features, as an encoder's; not trained
            null = nn.init.normal_(torch.empty(self.tokens, self.width), std=self.width**-0.5)
        self.register_buffer("y_embedding", null)

    def forward(self, cond: Cond, rows: int) -> tuple[Tensor, Tensor | None]:
        """(B, L, D), and which of them count (B, L); None: all."""
        like = self.y_proj.fc1.weight
        text, seen = text_or_null(cond, rows, self.width, like, self.y_embedding)
        if text.shape[1] > self.tokens:
            raise ValueError(
                f"cond.text must have at most {self.tokens} tokens, got {text.shape[1]}"
            )
        return self.y_proj(text), seen


class Block(nn.Module):
    """Attention, attention to the text, and MLP; the first and the last are modulated and gated."""

    def __init__(self, config: PixArtConfig, layer: int) -> None:
        super().__init__()
        d, norms = config.width, config.norms
        self.norm1, self.add1 = norms.residual(d, layer, config.depth)
        self.attn = SelfAttention(d, config.heads, qk_norm=norms.qk)
        self.cross_attn = CrossAttention(d, config.heads)
        self.norm2, self.add2 = norms.residual(d, layer, config.depth)
        self.mlp = MLP(d, int(d * config.mlp_ratio))
        self.scale_shift_table = nn.Parameter(torch.empty(6, d))

    def forward(
        self, x: Tensor, modulation: Tensor, text: Tensor, seen: Tensor | None, tau: Tensor | None
    ) -> Tensor:
        """x (B, N, D), modulation (B, 6, D) that all blocks share, text (B, L, D), seen (B, L)."""
        mine = modulation + self.scale_shift_table
        shift1, scale1, gate1, shift2, scale2, gate2 = mine.unbind(1)
        x = self.add1(x, self.attn(self.norm1(x, shift1, scale1, tau)), gate1)
        x = x + self.cross_attn(x, self.cross_attn.keys(text), seen)
        return self.add2(x, self.mlp(self.norm2(x, shift2, scale2, tau)), gate2)


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, out)
        self.scale_shift_table = nn.Parameter(torch.empty(2, width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table + c[:, None]).unbind(1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


OFFICIAL_ARGUMENTS = {
    "input_size": "size",
    "patch_size": "patch",
    "in_channels": "channels",
    "hidden_size": "width",
    "depth": "depth",
    "num_heads": "heads",
    "mlp_ratio": "mlp_ratio",
    "pred_sigma": "learned_variance",
    "caption_channels": "text_width",
    "model_max_length": "text_tokens",
}
OFFICIAL_OTHERS = ("lewei_scale", "micro_condition", "window_size")
OFFICIAL_TRAINING = ("class_dropout_prob", "drop_path", "config")
ONLY_VALUES: dict[str, tuple[Any, ...]] = {  # those of every release of PixArt-alpha
    "window_block_indexes": (None, [], ()),
    "use_rel_pos": (False,),
    "qk_norm": (False,),
    "kv_compress_config": (None,),
}


def from_official(official: Mapping[str, Any], state: Mapping[str, Tensor]) -> PixArt:
    """A PixArt from the constructor arguments and state dict of the released classes, `PixArt` and
    `PixArtMS`; the state dict tells whether the image's size is a condition.

    Positions are made, not read: where the state dict has them, they must be those of `input_size`
    and `lewei_scale`.
    """
    known = (*OFFICIAL_ARGUMENTS, *OFFICIAL_OTHERS, *OFFICIAL_TRAINING, *ONLY_VALUES)
    check_arguments(official, known, "the released PixArt")
    for name, allowed in ONLY_VALUES.items():
        if name in official and official[name] not in allowed:
            raise ConfigError(f"{name} must be {allowed[0]}, got {official[name]!r}")
    fields = {"learned_variance": True, **renamed(official, OFFICIAL_ARGUMENTS)}
    scale = official.get("lewei_scale", 1.0)
    if scale != 1:
        side = fields.get("size", PIXART_XL_2.size) // fields.get("patch", PIXART_XL_2.patch)
        fields["span"] = side / scale
    if official.get("micro_condition", "csize_embedder.mlp.0.weight" in state):
        fields["pixels"] = 8
    net = build(PixArtConfig, fields).build()
    positions = state.get("pos_embed", net.pos_embed)
    if positions.shape != net.pos_embed.shape or not torch.allclose(
        positions.to(net.pos_embed), net.pos_embed, atol=1e-3
    ):
        raise ValueError(
            f"official PixArt: pos_embed {tuple(positions.shape)} is not that of "
            f"{net.pos_embed.shape[1]} tokens and lewei_scale {scale}"
        )
    load_state(net, {k: v for k, v in state.items() if k != "pos_embed"}, "official PixArt")
    return net
