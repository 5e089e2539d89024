"""U-ViT: a transformer on [label, time, text, patch] tokens with long skips, which can be scaled.

Source: Bao et al. 2023, "All are Worth Words: A ViT Backbone for Diffusion Models", section 3 and
the released code, whose attribute names and initial values these are; scaled skips: Huang et al.
2023, "ScaleLong", and its released code.
Letters: B batch, C channels, H W map size, p patch, N tokens, D width, K classes, L text tokens.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import torch
from einops import rearrange
from torch import Tensor, nn

from genvis.checkpoint import load_state
from genvis.config import ConfigError, build, check_arguments, config, dump, renamed
from genvis.nn import SKIP_SCALES
from genvis.nn.embeddings import LabelEmbedder, sinusoids
from genvis.nn.norms import Norms
from genvis.nn.skips import Constant, InverseSqrt2, PerToken, SkipScale, Unscaled
from genvis.nn.text import padded, text_or_negative
from genvis.nn.transformer import MLP, PatchEmbed, SelfAttention, check_map
from genvis.types import Cond


@config
class UViTConfig:
    size: int | tuple[int, int] = 32  # of the latent map: side, or (height, width)
    channels: int = 4
    patch: int = 2
    width: int = 1152
    depth: int = 28  # blocks on both sides of the middle one; an odd one counts as one less
    heads: int = 16
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    time_mlp: bool = False  # two layers on the time's sinusoids, which are its token otherwise
    conv: bool = True  # a 3 x 3 convolution on the output map
    num_classes: int = 1000  # 0: no label token
    null_class: bool = True  # a label-table row for "no label"
    text_width: int = 0  # of cond.text; 0: no text tokens
    text_tokens: int = 77
    # padding is read as it comes, as in the released text models; False: it is zeros
    text_padding: bool = False
    norms: Norms = Norms()
    skips: Annotated[SkipScale, SKIP_SCALES] = Unscaled()

    def __post_init__(self) -> None:
        h, w = self.shape[1:]
        least_one = (h, w, self.channels, self.patch, self.width, self.heads, self.text_tokens)
        if min(least_one) < 1:
            raise ValueError(
                "size, channels, patch, width, heads and text_tokens must be at least 1"
            )
        if min(self.num_classes, self.text_width) < 0:
            raise ValueError("num_classes and text_width must be at least 0")
        if self.depth < 2:
            raise ValueError(f"depth must be at least 2, a block on each side, got {self.depth}")
        if h % self.patch or w % self.patch:
            raise ValueError(f"size must be divisible by patch, got {h} x {w} and {self.patch}")
        if self.width % self.heads:
            raise ValueError(f"width must be divisible by heads, got {self.width} and {self.heads}")

    @property
    def shape(self) -> tuple[int, int, int]:
        h, w = (self.size, self.size) if isinstance(self.size, int) else self.size
        return self.channels, h, w

    @property
    def patches(self) -> int:
        return (self.shape[1] // self.patch) * (self.shape[2] // self.patch)

    @property
    def extras(self) -> int:
        """Tokens in front of the patches."""
        return (self.num_classes > 0) + 1 + (self.text_tokens if self.text_width else 0)

    def build(self) -> "UViT":
        return UViT(self)


UVIT_S_2 = UViTConfig(channels=3, width=512, depth=12, heads=8, num_classes=0)  # CIFAR-10
UVIT_S_2_TEXT = replace(UVIT_S_2, channels=4, text_width=768, text_padding=True)  # MS-COCO
UVIT_S_2_DEEP = replace(UVIT_S_2_TEXT, depth=16)
UVIT_M_4 = UViTConfig(  # ImageNet 64: pixels, no null label
    size=64, channels=3, patch=4, width=768, depth=16, heads=12, null_class=False
)
UVIT_L_2 = UViTConfig(width=1024, depth=20, heads=16)  # ImageNet 256
UVIT_L_4 = replace(UVIT_L_2, size=64, patch=4)  # ImageNet 512
UVIT_H_2 = UViTConfig(width=1152, depth=28, heads=16, conv=False)
UVIT_H_4 = replace(UVIT_H_2, size=64, patch=4)


class UViT(nn.Module):
    def __init__(self, config: UViTConfig) -> None:
        super().__init__()
        self.config = config
        c, d, half = config.channels, config.width, config.depth // 2
        n = config.extras + config.patches
        self.patch_embed = PatchEmbed(c, d, config.patch)
        self.label_emb: nn.Module = NoToken()
        self.time_embed: nn.Module = nn.Identity()
        self.context_embed: nn.Module = NoToken()
        if config.num_classes:
            self.label_emb = LabelToken(config.num_classes, d, config.null_class)
        if config.time_mlp:
            self.time_embed = nn.Sequential(nn.Linear(d, 4 * d), nn.SiLU(), nn.Linear(4 * d, d))
        if config.text_width:
            self.context_embed = TextTokens(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, n, d))
        self.in_blocks = nn.ModuleList([Block(config, layer) for layer in range(half)])
        self.mid_block = Block(config, half)
        self.out_blocks = nn.ModuleList([OutBlock(config, half + 1 + k) for k in range(half)])
        self.norm = config.norms.norm(d, eps=1e-5)
        self.decoder_pred = nn.Linear(d, config.patch**2 * c)
        self.final_layer = nn.Conv2d(c, c, 3, padding=1) if config.conv else nn.Identity()
        self.reset_parameters()
        self.se = config.skips.build((d,) * half, tokens=n)  # its gates keep torch's initial values

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Network output for x (B, C, H, W) at network time t (B,); shaped like x.

        Rows that cond.drop names take the null label; their text is that of cond.negative, where
        given, else zeros. The released text models were trained with the empty prompt in its place:
        give its embedding as the negative. What cond.text_mask calls padding does not count, nor
        does a text's length (at most `text_tokens`), but where `text_padding` is set.
        """
        check_map(x, self.config.shape)
        h, p = x.shape[2] // self.config.patch, self.config.patch
        x = self.patch_embed(x)
        time = self.time_embed(sinusoids(t, self.config.width).to(x.dtype))[:, None]
        x = torch.cat([self.label_emb(x, cond), time, self.context_embed(x, cond), x], dim=1)
        x = x + self.pos_embed  # (B, N, D)
        tau = self.config.norms.tau(t)  # (B,) or None
        skips = []
        for block in self.in_blocks:
            x = block(x, tau)
            skips.append(x)
        x = self.mid_block(x, tau)
        for block in self.out_blocks:
            i = len(skips)  # from 1, the outermost
            x = block(x, self.se(i, skips.pop()), tau)
        x = self.decoder_pred(self.norm(x))[:, self.config.extras :]
        return self.final_layer(rearrange(x, "b (h w) (p q c) -> b c (h p) (w q)", h=h, p=p, q=p))


class Block(nn.Module):
    def __init__(self, config: UViTConfig, layer: int) -> None:
        super().__init__()
        d, norms, depth = config.width, config.norms, config.depth // 2 * 2 + 1
        self.norm1, self.add1 = norms.residual(d, layer, depth, eps=1e-5, affine=True)
        self.attn = SelfAttention(d, config.heads, bias=config.qkv_bias, qk_norm=norms.qk)
        self.norm2, self.add2 = norms.residual(d, layer, depth, eps=1e-5, affine=True)
        self.mlp = MLP(d, int(d * config.mlp_ratio), gelu="none")

    def forward(self, x: Tensor, tau: Tensor | None) -> Tensor:
        x = self.add1(x, self.attn(self.norm1(x, tau=tau)))
        return self.add2(x, self.mlp(self.norm2(x, tau=tau)))


class OutBlock(Block):
    """A block behind the junction of the main path and a skip."""

    def __init__(self, config: UViTConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.skip_linear = nn.Linear(2 * config.width, config.width)

    def forward(self, x: Tensor, skip: Tensor, tau: Tensor | None) -> Tensor:  # type: ignore[override]
        return super().forward(self.skip_linear(torch.cat([x, skip], dim=-1)), tau)


class NoToken(nn.Module):
    def forward(self, patches: Tensor, cond: Cond) -> Tensor:
        return patches[:, :0]


class LabelToken(LabelEmbedder):
    def forward(self, patches: Tensor, cond: Cond) -> Tensor:  # type: ignore[override]
        return super().forward(cond)[:, None]


class TextTokens(nn.Linear):
    """cond.text (B, L, width of the text) to (B, text_tokens, D); its padding is zeros before, and
    so is the text of a dropped row without a negative one.
    """

    def __init__(self, config: UViTConfig) -> None:
        super().__init__(config.text_width, config.width)
        self.tokens, self.padding = config.text_tokens, config.text_padding

    def forward(self, patches: Tensor, cond: Cond) -> Tensor:  # type: ignore[override]
        cond = unmasked(cond) if self.padding else cond
        text, seen = text_or_negative(cond, len(patches), self.in_features, self.weight)
        length = text.shape[1]
        if length > self.tokens or (self.padding and length not in (0, self.tokens)):
            raise ValueError(
                f"cond.text must have {'' if self.padding else 'at most '}{self.tokens} tokens, "
                f"got {length}"
            )
        return super().forward(padded(text, seen, self.tokens)[0])


def unmasked(cond: Cond) -> Cond:
    """With every token of its texts."""
    negative = cond.negative and unmasked(cond.negative)
    return replace(cond, text_mask=None, negative=negative)


OFFICIAL_DEFAULTS = UViTConfig(
    size=224, patch=16, channels=3, width=768, depth=12, heads=12, num_classes=0
)
OFFICIAL_ARGUMENTS = {
    "img_size": "size",
    "patch_size": "patch",
    "in_chans": "channels",
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "heads",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "mlp_time_embed": "time_mlp",
    "num_classes": "num_classes",
    "conv": "conv",
    "clip_dim": "text_width",
    "num_clip_token": "text_tokens",
}
SCALELONG_ARGUMENTS = ("scalelong", "kappa")
OTHER_ARGUMENTS = ("p_uncond", "use_checkpoint")  # the second only saves memory
ONLY_VALUES = {"skip": True, "qk_scale": None}  # other values of these belong to no release


def from_official(official: Mapping[str, Any], state: Mapping[str, Tensor]) -> UViT:
    """A U-ViT from the constructor arguments and state dict of a released class: U-ViT's, its text
    model's, or ScaleLong's.

    The last of the released num_classes is the null label, unless `p_uncond` of the training
    config is given too and is 0: then all are real, as for ImageNet 64.
    """
    known = (*OFFICIAL_ARGUMENTS, *SCALELONG_ARGUMENTS, *OTHER_ARGUMENTS, *ONLY_VALUES)
    check_arguments(official, known, "the released U-ViT")
    for name, value in ONLY_VALUES.items():
        if (given := official.get(name, value)) != value:
            raise ConfigError(f"{name} must be {value}, as in every release, got {given!r}")
    given = renamed(official, OFFICIAL_ARGUMENTS)
    classes = max(given.get("num_classes", 0), 0)  # the released class says -1 for none
    null = classes > 0 and official.get("p_uncond", 1) > 0
    fields = {**dump(OFFICIAL_DEFAULTS), **given}
    if "context_embed.weight" in state:
        fields |= {"text_width": 768, "text_padding": True, **given}
    net = replace(
        build(UViTConfig, {**fields, "num_classes": classes - null, "null_class": null}),
        skips=scalelong(official.get("scalelong", 0), official.get("kappa", 0.5)),
    ).build()
    names = {"label_emb.weight": "label_emb.embedding_table.weight"}
    load_state(net, {names.get(key, key): value for key, value in state.items()}, "official U-ViT")
    return net


def scalelong(mode: int, kappa: float) -> SkipScale:
    """The scaling behind the released argument `scalelong` (0 to 4) with its `kappa`."""
    shared, own = PerToken(shared=True), PerToken()
    modes = (Unscaled(), InverseSqrt2(), Constant(kappa=kappa), shared, own)
    if mode not in range(len(modes)):
        raise ConfigError(f"scalelong must be 0 to {len(modes) - 1}, got {mode!r}")
    return modes[mode]
