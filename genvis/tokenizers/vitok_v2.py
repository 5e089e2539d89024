"""ViTok-v2: parallel transformer blocks on patches of images of any size, without a KL.

Source: the ViTok-v2 release (Na-VAE/vitok-release), whose attribute names these are. The latent is
layer-normalised over its channels, so it is unit-scaled without constants.
Letters: B batch, N tokens (padded), D width, c channels of a token, p patch side, H W image size.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from genvis.checkpoint import load_state
from genvis.config import ConfigError, build, check_arguments, config
from genvis.kernels.attention import attention
from genvis.nn.rotary import axial, rotate
from genvis.random import Keys
from genvis.tokenizers.patches import Patches
from genvis.tokenizers.towers import Tower, variant
from genvis.types import Moments, Reconstruction

SIZES = {
    "B": Tower(width=768, depth=12, heads=12),
    "L": Tower(width=1024, depth=24, heads=16),
    "G": Tower(width=1728, depth=32, heads=24),
    "T": Tower(width=3072, depth=40, heads=24),
    "E": Tower(width=4096, depth=48, heads=32),
}
EPS = 1e-6
ROPE_THETA = 10_000.0


@config
class ViTokV2Config:
    """Any size that patches divide is taken; `size` is the one that `shape` speaks of."""

    size: int | tuple[int, int] = 256
    patch: int = 16
    code: int = 16
    encoder: Tower = replace(SIZES["L"], depth=4)
    decoder: Tower = SIZES["L"]
    mlp_ratio: float = 2.67
    layer_scale: float = 1e-4  # first value of every block's gain

    def __post_init__(self) -> None:
        h, w = self.height_width
        if min(h, w, self.patch, self.code) < 1 or h % self.patch or w % self.patch:
            raise ValueError(
                "size, patch and code must be at least 1 and size divisible by patch, got "
                f"{(h, w)}, {self.patch} and {self.code}"
            )
        if self.mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio must be positive, got {self.mlp_ratio}")
        for tower in (self.encoder, self.decoder):
            if (tower.width // tower.heads) % 4:
                raise ValueError(
                    "width / heads must be divisible by 4 for positions in two dimensions, got "
                    f"{tower.width // tower.heads}"
                )

    @property
    def height_width(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def shape(self) -> tuple[int, int, int]:
        h, w = self.height_width
        return self.code, h // self.patch, w // self.patch

    @property
    def floats(self) -> int:
        c, h, w = self.shape
        return c * h * w

    @classmethod
    def named(cls, name: str, **fields: Any) -> "ViTokV2Config":
        """The model called Ld4-Ld24/1x16x64."""
        v = variant(name, SIZES)
        if v.tubelet != 1 or v.code is None:
            raise ConfigError(f"{name!r} must be of the form Ld4-Ld24/1x16x64, for images")
        return cls(patch=v.patch, code=v.code, encoder=v.encoder, decoder=v.decoder, **fields)

    def build(self) -> "ViTokV2":
        return ViTokV2(self)


VITOK_V2_350M_F16X16 = ViTokV2Config.named("Ld4-Ld24/1x16x16")
VITOK_V2_350M_F16X32 = ViTokV2Config.named("Ld4-Ld24/1x16x32")
VITOK_V2_350M_F16X64 = ViTokV2Config.named("Ld4-Ld24/1x16x64")
VITOK_V2_5B_F16X16 = ViTokV2Config.named("Td4-T/1x16x16")
VITOK_V2_5B_F16X32 = ViTokV2Config.named("Td4-T/1x16x32")
VITOK_V2_5B_F16X64 = ViTokV2Config.named("Td4-T/1x16x64")


class ViTokV2(nn.Module):
    def __init__(self, config: ViTokV2Config) -> None:
        super().__init__()
        self.config = config
        pixels, d, e = 3 * config.patch**2, config.encoder.width, config.decoder.width
        self.patch_embed = nn.Linear(pixels, d)
        self.encoder_blocks = self._blocks(config.encoder)
        self.to_code = nn.Linear(d, config.code)
        self.decoder_embed = nn.Linear(config.code, e)
        self.decoder_blocks = self._blocks(config.decoder)
        self.to_pixels = nn.Linear(e, pixels)

    def _blocks(self, tower: Tower) -> nn.ModuleList:
        hidden = (int(tower.width * self.config.mlp_ratio) + 8) // 16 * 16
        blocks = [Block(tower, hidden, self.config.layer_scale) for _ in range(tower.depth)]
        return nn.ModuleList(blocks)

    def forward(self, images: Tensor, keys: Keys | None = None) -> Reconstruction:
        """Nothing is sampled and nothing is penalised: the code is normalised instead."""
        images = self._image(self.encode(images).mode())
        return Reconstruction(images, images.new_zeros(len(images)))

    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        """What may be trained while every latent stays as it is."""
        for part in (self.decoder_embed, self.decoder_blocks, self.to_pixels):
            yield from part.parameters()

    def encode(self, images: Tensor) -> Moments:
        """Images (B, 3, H, W) in [-1, 1] -> (B, c, H/p, W/p), exact (no std)."""
        p = self.config.patch
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % p or images.shape[3] % p:
            raise ValueError(
                f"expected images (B, 3, H, W) with sides divisible by {p}, got "
                f"{tuple(images.shape)}; `patchify` pads other sizes"
            )
        values = rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)
        h, w = images.shape[2] // p, images.shape[3] // p
        z = self.codes(values, *_places(h, w, images.device))
        return Moments(rearrange(z, "b (h w) c -> b c h w", h=h))

    def decode(self, z: Tensor) -> Tensor:
        """(B, c, h, w) -> images (B, 3, h p, w p) in [-1, 1]."""
        if z.ndim != 4 or z.shape[1] != self.config.code:
            shape = ", ".join(map(str, self.config.shape))
            raise ValueError(f"z must be (B, {shape}), got {tuple(z.shape)}")
        return self._image(z).clamp(-1, 1)

    def encode_patches(self, patches: Patches) -> Patches:
        """Patches of images of any sizes -> their codes (B, N, c), 0 at padding."""
        z = self.codes(patches.values, patches.rows, patches.columns, patches.real)
        return replace(patches, values=z.masked_fill(~patches.real[..., None], 0))

    def decode_patches(self, codes: Patches) -> Patches:
        """Codes -> patches (B, N, 3 p p), 0 at padding."""
        x = self.pixels(codes.values, codes.rows, codes.columns, codes.real)
        return replace(codes, values=x.masked_fill(~codes.real[..., None], 0))

    def codes(
        self, patches: Tensor, rows: Tensor, columns: Tensor, real: Tensor | None = None
    ) -> Tensor:
        """(B, N, 3 p p) at rows and columns (B, N) -> (B, N, c); what is not real is not seen."""
        x = _run(
            self.config.encoder, self.encoder_blocks, self.patch_embed(patches), rows, columns, real
        )
        return F.layer_norm(self.to_code(x), (self.config.code,), eps=EPS)

    def pixels(
        self, codes: Tensor, rows: Tensor, columns: Tensor, real: Tensor | None = None
    ) -> Tensor:
        """The other way: (B, N, c) -> (B, N, 3 p p)."""
        x = _run(
            self.config.decoder, self.decoder_blocks, self.decoder_embed(codes), rows, columns, real
        )
        return self.to_pixels(x)

    def _image(self, z: Tensor) -> Tensor:
        p, (h, w) = self.config.patch, z.shape[2:]
        x = self.pixels(rearrange(z, "b c h w -> b (h w) c"), *_places(h, w, z.device))
        return rearrange(x, "b (h w) (c p q) -> b c (h p) (w q)", h=h, p=p, q=p)


def _places(h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns (1, h w) of a whole map."""
    number = torch.arange(h * w, device=device)[None]
    return number // w, number % w


def _run(
    tower: Tower,
    blocks: nn.ModuleList,
    x: Tensor,
    rows: Tensor,
    columns: Tensor,
    real: Tensor | None,
) -> Tensor:
    pairs = tower.width // tower.heads // 4  # for each axis
    turn = axial([rows, columns], [pairs, pairs], ROPE_THETA)[:, :, None]
    # padding attends to real tokens as these do, so that no row of attention is empty
    mask = None if real is None else real[:, None, None, :]
    for block in blocks:
        x = block(x, turn, mask)
    return x


class Block(nn.Module):
    """Attention and MLP side by side on one norm, added with a learned gain."""

    def __init__(self, tower: Tower, hidden: int, gain: float) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(tower.width, eps=EPS)
        self.attn = Attention(tower)
        self.ffn = SwiGLU(tower.width, hidden)
        self.layer_scale = LayerScale(tower.width, gain)

    def forward(self, x: Tensor, turn: Tensor, mask: Tensor | None) -> Tensor:
        h = self.norm1(x)
        return x + self.layer_scale(self.attn(h, turn, mask) + self.ffn(h))


class Attention(nn.Module):
    """Rotary self-attention with RMS norms on queries and keys."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.heads, head = tower.heads, tower.width // tower.heads
        self.norm_q, self.norm_k = nn.RMSNorm(head, eps=EPS), nn.RMSNorm(head, eps=EPS)
        self.qkv_proj = nn.Linear(tower.width, 3 * tower.width, bias=False)
        self.out_proj = nn.Linear(tower.width, tower.width, bias=False)

    def forward(self, x: Tensor, turn: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, N, D); turn (2, B, 1, N, P); mask (B, 1, 1, N) bool: what may be attended to."""
        qkv = rearrange(self.qkv_proj(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        q, k, v = qkv
        out = attention(rotate(self.norm_q(q), turn), rotate(self.norm_k(k), turn), v, mask)
        return self.out_proj(rearrange(out, "b h n d -> b n (h d)"))


class SwiGLU(nn.Module):
    """The first half of `fc1` is the value, the second the gate."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * hidden, bias=False)
        self.fc2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)


class LayerScale(nn.Module):
    def __init__(self, width: int, gain: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), gain))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


RELEASED = {
    "pixels_per_token": 768,
    "channels_per_token": 32,
    "encoder_width": 1024,
    "decoder_width": 1024,
    "encoder_depth": 2,
    "decoder_depth": 22,
    "encoder_heads": 12,
    "decoder_heads": 12,
    "mlp_factor": 2.67,
    "spatial_stride": 16,
}


def from_official(official: Mapping[str, Any], state: Mapping[str, Tensor]) -> ViTokV2:
    """A ViTokV2 from the constructor arguments of the released class and its state dict: the union
    of `encoder.safetensors` and `decoder.safetensors` (the keys are the same).
    """
    check_arguments(official, RELEASED, "the released ViTok-v2 (its image path)")
    given = {**RELEASED, **official}
    patch = given["spatial_stride"]
    if given["pixels_per_token"] != 3 * patch**2:
        raise ConfigError(
            f"pixels_per_token must be 3 x {patch} x {patch} for images, got "
            f"{given['pixels_per_token']}"
        )
    towers = {
        tower: {name: given[f"{tower}_{name}"] for name in ("width", "depth", "heads")}
        for tower in ("encoder", "decoder")
    }
    fields = {"code": given["channels_per_token"], "mlp_ratio": float(given["mlp_factor"])}
    net = build(ViTokV2Config, {"size": 16 * patch, "patch": patch, **fields, **towers}).build()
    load_state(net, state, "official ViTok-v2")
    return net
