"""ViTok: a plain transformer auto-encoder whose tokens are the latents, for images and video.

Source: Hansen-Estruch et al. 2025, "Learnings from Scaling Visual Tokenizers for Reconstruction and
Generation", section 2 and the released `AE`, whose attribute names these are; its gate is GELU
where the paper says SwiGLU, and full attention also in video.
Letters: B batch, C image channels, T H W video size, q frames and p pixels of a token, (t, h, w)
the grid of L tokens, D width, c channels of a token; E = L c floats in all, what predicts quality.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from genvis.checkpoint import load_state
from genvis.config import ConfigError, build, check_arguments, config, renamed
from genvis.random import Keys
from genvis.tokenizers.gaussian import DiagonalGaussian
from genvis.tokenizers.towers import Tower, variant
from genvis.tokenizers.vitok_parts import (
    MLP_RATIO,
    Gate,
    Grid,
    Rope,
    Transformer,
    TubeletDecode,
    TubeletEmbed,
    coordinates,
    mixed_frequencies,
    sincos,
)
from genvis.types import Moments, Reconstruction

Positions = Literal["none", "sincos1d", "sincos2d", "sincos3d", "learned", "decoder"]
# what widths, and widths of heads, must be divisible by
POSITION_PARTS = {
    "none": 1,
    "sincos1d": 2,
    "sincos2d": 4,
    "sincos3d": 6,
    "learned": 6,
    "decoder": 6,
}
ROPE_PARTS = {"none": 1, "1d": 2, "2d": 4, "mixed": 4, "3d": 2}
SIZES = {
    "XXS": Tower(width=192, depth=4, heads=3),  # ours, for small images
    "XS": Tower(width=384, depth=6, heads=6),  # ours
    "S": Tower(width=768, depth=6, heads=12),
    "B": Tower(width=768, depth=12, heads=12),
    "L": Tower(width=1152, depth=24, heads=16),
    "H": Tower(width=1312, depth=32, heads=16),
}


@config
class ViTokConfig:
    """Tables of positions: fixed sinusoids, `learned` on both sides, or learned on the `decoder`'s
    alone. Rotary positions run over the token's number (1d), column and row (2d), the same with
    learned frequencies (mixed), or time, row and column (3d, ours; a third of each head or so).
    """

    size: int | tuple[int, int] = 256  # of the images: side, or (height, width)
    frames: int = 1  # of the videos; 1 for images
    channels: int = 3  # 1 for grey data, whose three channels are equal
    patch: int = 16
    tubelet: int = 1
    code: int = 16
    tokens: int | None = None  # of a 1-D code, which has no map; default: one for each patch
    lengths: tuple[int, ...] = ()  # a 1-D code can be cut to: a learned token replaces the rest
    encoder: Tower = SIZES["S"]
    decoder: Tower = SIZES["B"]
    variational: bool = True
    gate: Gate = "gelu"
    positions: Positions = "none"
    rope: Rope = "1d"
    rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        h, w = self.height_width
        if min(h, w, self.frames, self.channels, self.patch, self.tubelet, self.code) < 1:
            raise ValueError(
                "size, frames, channels, patch, tubelet and code must be at least 1, got "
                f"{(h, w)}, {self.frames}, {self.channels}, {self.patch}, {self.tubelet}, "
                f"{self.code}"
            )
        if h % self.patch or w % self.patch or self.frames % self.tubelet:
            raise ValueError(
                f"size {(h, w)} must be divisible by patch {self.patch}, and frames {self.frames} "
                f"by tubelet {self.tubelet}"
            )
        for tower in (self.encoder, self.decoder):
            self._check_widths(tower)
        if self.positions == "sincos2d" and self.grid[0] > 1:
            raise ValueError("positions sincos2d are for images: videos need sincos1d or sincos3d")
        if self.tokens is not None and (
            self.tokens < 1 or self.positions == "none" or self.rope not in ("none", "1d")
        ):
            raise ValueError(
                "a 1-D code needs tokens of at least 1, positions for the decoder to ask at, and "
                f"rope 1d or none; got {self.tokens}, {self.positions} and {self.rope}"
            )
        if not all(1 <= length <= self.length for length in self.lengths):
            raise ValueError(f"lengths must be in 1..{self.length}, got {self.lengths}")

    def _check_widths(self, tower: Tower) -> None:
        parts, head = POSITION_PARTS[self.positions], tower.width // tower.heads
        if tower.width % parts:
            raise ValueError(
                f"width must be divisible by {parts} for positions {self.positions}, "
                f"got {tower.width}"
            )
        if head % ROPE_PARTS[self.rope] or (self.rope == "3d" and head < 6):
            raise ValueError(
                f"width / heads must be divisible by {ROPE_PARTS[self.rope]} for rope {self.rope} "
                f"(and at least 6 for 3d), got {head}"
            )

    @property
    def height_width(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def grid(self) -> Grid:
        h, w = self.height_width
        return self.frames // self.tubelet, h // self.patch, w // self.patch

    @property
    def length(self) -> int:
        """L, the tokens of a code."""
        t, h, w = self.grid
        return t * h * w if self.tokens is None else self.tokens

    @property
    def floats(self) -> int:
        """E = L c."""
        return self.length * self.code

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a latent: (c, h, w), (c, t, h, w) for video, (c, 1, L) for a 1-D code."""
        if self.tokens is not None:
            return self.code, 1, self.tokens
        t, h, w = self.grid
        return (self.code, h, w) if self.frames == 1 else (self.code, t, h, w)

    @property
    def flops(self) -> int:
        """Multiply-adds of encoding and decoding one example: the paper's "FLOPs"."""
        t, h, w = self.grid
        patches = t * h * w
        n = patches + (self.tokens or 0)
        moments = self.code * (1 + self.variational)
        pixels = self.channels * self.tubelet * self.patch**2
        total = 0
        for tower, code in ((self.encoder, moments), (self.decoder, self.code)):
            d, hidden = tower.width, int(MLP_RATIO * tower.width)
            total += tower.depth * (n * (4 * d * d + 3 * d * hidden) + 2 * n * n * d)
            total += patches * pixels * d + self.length * code * d
        return total

    @classmethod
    def named(
        cls,
        name: str,
        size: int | tuple[int, int] = 256,
        frames: int | None = None,
        floats: int | None = None,
        **fields: Any,
    ) -> "ViTokConfig":
        """The model called S-B/16, S-B/4x16 or S-B/1x16x64, with E = `floats` unless the name ends
        with c. Videos (16 frames by default) get sincos3d positions beside the rotary ones.
        """
        v = variant(name, SIZES)
        frames = frames or (1 if v.tubelet == 1 else 16)
        fields = {"positions": "none" if frames == 1 else "sincos3d", **fields}
        made = cls(
            size=size,
            frames=frames,
            patch=v.patch,
            tubelet=v.tubelet,
            encoder=v.encoder,
            decoder=v.decoder,
            code=v.code or 1,
            **fields,
        )
        if floats is None and v.code is None:
            raise ConfigError(f"{name!r} leaves c open: give floats = L c, or say S-B/1x16x16")
        if floats is None:
            return made
        if floats % made.length or v.code not in (None, floats // made.length):
            raise ConfigError(f"{name!r} has {made.length} tokens, which cannot hold E = {floats}")
        return replace(made, code=floats // made.length)

    def build(self) -> "ViTok":
        return ViTok(self)


VITOK_S_S_16 = ViTokConfig.named("S-S/16", floats=4096)
VITOK_S_B_16 = ViTokConfig.named("S-B/16", floats=4096)
VITOK_S_L_16 = ViTokConfig.named("S-L/16", floats=4096)
VITOK_B_S_16 = ViTokConfig.named("B-S/16", floats=4096)
VITOK_B_B_16 = ViTokConfig.named("B-B/16", floats=4096)
VITOK_B_L_16 = ViTokConfig.named("B-L/16", floats=4096)
VITOK_L_L_16 = ViTokConfig.named("L-L/16", floats=4096)
VITOK_S_B_8 = ViTokConfig.named("S-B/8", floats=4096)
VITOK_S_B_32 = ViTokConfig.named("S-B/32", floats=2048)
VITOK_S_B_4X8 = ViTokConfig.named("S-B/4x8x16", size=128)  # E = 16,384
VITOK_S_B_8X8 = ViTokConfig.named("S-B/8x8x16", size=128)  # E = 8,192
VITOK_S_B_4X16 = ViTokConfig.named("S-B/4x16x16", size=128)  # E = 4,096


class ViTok(nn.Module):
    posemb: Tensor | None
    dec_posemb: Tensor | None
    code: Tensor | None

    def __init__(self, config: ViTokConfig) -> None:
        super().__init__()
        self.config = config
        d, e, c = config.encoder.width, config.decoder.width, config.code
        self.tubelet_embed = TubeletEmbed(config.channels, d, config.tubelet, config.patch)
        self.encoder = Transformer(config.encoder, config.gate, config.rope, config.rope_theta)
        self.encoder_to_code = nn.Linear(d, c * (1 + config.variational))
        self.code_to_decoder = nn.Linear(c, e)
        self.decoder = Transformer(config.decoder, config.gate, config.rope, config.rope_theta)
        self.tubelet_decode = TubeletDecode(config.channels, e, config.tubelet, config.patch)
        self._add_table("posemb", d, config.positions not in ("none", "decoder"))
        self._add_table("dec_posemb", e, config.positions != "none")
        queries = None if config.tokens is None else sincos([torch.arange(config.tokens)], d)[None]
        self.register_buffer("code", queries)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, c)) if config.lengths else None
        self.enc_freqs = self.dec_freqs = None
        if config.rope == "mixed":
            self.enc_freqs = nn.Parameter(mixed_frequencies(config.encoder, config.rope_theta))
            self.dec_freqs = nn.Parameter(mixed_frequencies(config.decoder, config.rope_theta))
        self.reset_parameters()

    def _add_table(self, name: str, width: int, there: bool) -> None:
        """Positions (1, N, D): a buffer where they are fixed, a parameter where they are learned,
        starting from sinusoids as well.
        """
        if not there:
            self.register_buffer(name, None)
            return
        kind, (t, y, x) = self.config.positions, coordinates(self.config.grid)
        axes = {"sincos1d": [torch.arange(len(t))], "sincos2d": [x, y]}.get(kind, [t, x, y])
        table = sincos(axes, width)[None]
        if kind.startswith("sincos"):
            self.register_buffer(name, table)
        else:
            self.register_parameter(name, nn.Parameter(table))

    def reset_parameters(self) -> None:
        """The released initial values of all that is not positions."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.tubelet_embed.proj.weight.flatten(1))

    def forward(self, images: Tensor, keys: Keys | None = None) -> Reconstruction:
        """With keys, codes are sampled and, where the config has lengths, cut to one of them. The
        penalty is the KL per float of the code.
        """
        posterior = self.posterior(images)
        z = posterior.mode() if keys is None else posterior.sample(keys.fold("code"))
        if keys is not None and self.mask_token is not None:
            u = keys.fold("length").uniform(device=z.device)
            lengths = torch.tensor(self.config.lengths, device=z.device)
            z = self.shorten(z, lengths[(u * len(lengths)).long()])
        kl = posterior.kl().expand(len(z)) / z[0].numel()
        return Reconstruction(self._image(z), kl, {"kl": kl.mean(), "std": posterior.std.mean()})

    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        """What the second stage of training changes, so that encodings stay what they were."""
        for part in (self.code_to_decoder, self.decoder, self.tubelet_decode):
            yield from part.parameters()

    def encode(self, images: Tensor) -> Moments:
        """Images (B, 3, H, W), or videos (B, 3, T, H, W), in [-1, 1] -> (B, c, h, w),
        (B, c, t, h, w) or, of a 1-D code, (B, c, 1, L).

        Without tables of positions every size that tokens divide is taken. The KL holds the scale
        near 1; the tokenizer `scaled` makes it 1.
        """
        return self.posterior(images).moments

    def decode(self, z: Tensor) -> Tensor:
        """What `encode` makes -> images (B, 3, H, W) or videos (B, 3, T, H, W), in [-1, 1]."""
        shape = self.config.shape
        if z.ndim != len(shape) + 1 or z.shape[1] != shape[0]:
            raise ValueError(f"z must be (B, {', '.join(map(str, shape))}), got {tuple(z.shape)}")
        return self._image(z).clamp(-1, 1)

    def posterior(self, images: Tensor) -> DiagonalGaussian:
        """Of codes, in the shapes of `encode`."""
        video = self.config.frames > 1
        if images.ndim != 4 + video or images.shape[1] not in (3, self.config.channels):
            wanted = "videos (B, 3, T, H, W)" if video else "images (B, 3, H, W)"
            raise ValueError(f"expected {wanted}, got {tuple(images.shape)}")
        x = images if video else images.unsqueeze(2)
        x = x.mean(1, keepdim=True) if self.config.channels == 1 else x
        t, h, w = (1, 1, self.config.tokens) if self.config.tokens else self._grid(x)
        z = rearrange(self.codes(x), "b (t h w) c -> b c t h w", t=t, h=h, w=w)
        z = z if len(self.config.shape) == 4 else z.squeeze(2)
        if self.config.variational:
            return DiagonalGaussian.of(z)
        return DiagonalGaussian(z, torch.zeros_like(z), deterministic=True)

    def codes(self, x: Tensor) -> Tensor:
        """Clips (B, C, T, H, W) -> means, then log-variances if variational, (B, L, c or 2 c)."""
        grid = self._grid(x)
        tokens = self.tubelet_embed(x)  # (B, t h w, D)
        if self.posemb is not None:
            tokens = tokens + self.posemb[:, : tokens.shape[1]]
        if self.code is not None:
            tokens = torch.cat([self.code.expand(len(x), -1, -1), tokens], dim=1)
        tokens = self.encoder(tokens, grid, self.enc_freqs)
        return self.encoder_to_code(tokens[:, : self.config.tokens])

    def pixels(self, codes: Tensor, grid: Grid) -> Tensor:
        """Codes (B, L, c) -> clips (B, C, T, H, W) of that grid of tokens; a linear output."""
        x = self.code_to_decoder(codes)  # (B, L, D)
        n = math.prod(grid)
        if self.dec_posemb is not None:
            asked = self.dec_posemb[:, :n].expand(len(x), -1, -1)
            x = x + asked if self.code is None else torch.cat([x, asked], dim=1)
        x = self.decoder(x, grid, self.dec_freqs)
        return self.tubelet_decode(x[:, -n:], grid)

    def _image(self, z: Tensor) -> Tensor:
        """Latents in the shapes of `encode` -> images or videos, not clamped."""
        grid = self.config.grid if self.config.tokens else (1, *z.shape[2:])[-3:]
        x = self.pixels(rearrange(z, "b c ... -> b (...) c"), grid)
        x = x if self.config.frames > 1 else x.squeeze(2)
        return x.expand(-1, 3, *x.shape[2:]) if self.config.channels == 1 else x

    def shorten(self, z: Tensor, lengths: Tensor) -> Tensor:
        """Latents whose tokens after the first `lengths` (B,) are the learned mask."""
        if self.mask_token is None:
            raise ValueError("this tokenizer was not trained to be cut: its config has no lengths")
        number = torch.arange(z[0, 0].numel(), device=z.device).view(z.shape[2:])
        kept = number < lengths.view(-1, *[1] * (z.ndim - 1))
        return torch.where(kept, z, self.mask_token.view(1, -1, *[1] * (z.ndim - 2)))

    def _grid(self, x: Tensor) -> Grid:
        """The tokens of clips (B, C, T, H, W); ValueError if they have no such grid."""
        q, p = self.config.tubelet, self.config.patch
        frames, h, w = x.shape[2:]
        if frames % q or h % p or w % p:
            raise ValueError(
                f"tokens of {q} frames and {p} x {p} pixels do not divide {frames} x {h} x {w}"
            )
        grid = frames // q, h // p, w // p
        full = self.config.grid
        early = grid[1:] == full[1:] and grid[0] < full[0] and not self.config.tokens
        if self.config.positions != "none" and not (grid == full or early):
            raise ValueError(f"positions are for {full} tokens (time, rows, columns), got {grid}")
        return grid


OFFICIAL_ARGUMENTS = {
    "channels": "channels",
    "img_size": "size",
    "num_frames": "frames",
    "patch_size": "patch",
    "tubelet_size": "tubelet",
    "code_width": "code",
    "variational": "variational",
}
NO_EFFECT = ("checkpoint", "block_casual")
RELEASED = {
    "width": 768,
    "encoder_depth": 6,
    "decoder_depth": 12,
    "num_heads": 12,
    "code_length": 256,
    "rope_theta": 10_000.0,
    "rope_style": "1d_axial",
    "simple": False,
    "posemb": "nope",
    "lengths": None,
    "norm_layer": "layer",
}
ROPES = {"1d_axial": "1d", "2d_axial": "2d", "1d_mixed": "mixed", "2d_mixed": "mixed"}


def from_official(official: Mapping[str, Any], state: Mapping[str, Tensor]) -> ViTok:
    """A ViTok from the constructor arguments and state dict of the released `AE` (the keys are the
    same; it has one width for both towers). Its `block_casual` mask never reaches attention.
    """
    given = {**RELEASED, **official}
    check_arguments(official, (*OFFICIAL_ARGUMENTS, *RELEASED, *NO_EFFECT), "the released ViTok")
    fields = renamed(official, OFFICIAL_ARGUMENTS)
    if given["norm_layer"] != "layer" or given["rope_style"] not in ROPES:
        raise ConfigError(
            f"norm_layer must be 'layer' and rope_style one of {', '.join(ROPES)}, got "
            f"{given['norm_layer']!r} and {given['rope_style']!r}"
        )
    for tower in ("encoder", "decoder"):
        depth = given[f"{tower}_depth"]
        fields[tower] = {"width": given["width"], "depth": depth, "heads": given["num_heads"]}
    turned = bool(given["rope_theta"])
    positions = {"nope": "none", "dec": "decoder"}.get(given["posemb"], given["posemb"])
    fields |= {
        "tokens": None if given["simple"] else given["code_length"],
        "lengths": given["lengths"] or [],
        "positions": positions,
        "rope": ROPES[given["rope_style"]] if turned else "none",
        "rope_theta": float(given["rope_theta"] or 1.0),
    }
    net = build(ViTokConfig, fields).build()
    load_state(net, state, "official ViTok")
    return net
