"""A convolutional auto-encoder around any quantizer: VQGAN's, FSQ's, MAGVIT-v2's, ELM's, ...

Source: Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis", section 3.1.
Letters: B rows, d code width, h w latent map, m indices of a token where it has several.
"""

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from einops import rearrange
from torch import Tensor, nn

from genvis.config import config
from genvis.random import Keys
from genvis.tokenizers import QUANTIZERS
from genvis.tokenizers.conv import ConvConfig, Decoder, Encoder
from genvis.tokenizers.quantizers.quantized import Quantized, QuantizerConfig
from genvis.types import Moments, Reconstruction

NETS = ConvConfig(width=128)


@config
class DiscreteConfig:
    nets: ConvConfig = NETS
    quantizer: Annotated[QuantizerConfig, QUANTIZERS]
    channels: int = 256  # between the networks and the 1 x 1 convolutions beside the quantizer

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"channels must be at least 1, got {self.channels}")

    def build(self) -> "Discrete":
        return Discrete(self)


class Discrete(nn.Module):
    """A `Tokenizer` whose latents are codes; `tokens` and `decode_tokens` speak in indices."""

    def __init__(self, config: DiscreteConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.nets, config.channels)
        self.quant_conv = nn.Conv2d(config.channels, config.quantizer.inputs, 1)
        self.quantize: Any = config.quantizer.build()
        self.post_quant_conv = nn.Conv2d(config.quantizer.width, config.channels, 1)
        self.decoder = Decoder(config.nets, config.channels)

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, h, w, width of what is quantized)."""
        factor = self.config.nets.factor
        if images.ndim != 4 or images.shape[1] != 3 or any(n % factor for n in images.shape[2:]):
            raise ValueError(
                f"images must be (B, 3, H, W) with sides divisible by {factor}, got "
                f"{tuple(images.shape)}"
            )
        return rearrange(self.quant_conv(self.encoder(images)), "b d h w -> b h w d")

    def quantized(self, f: Tensor, keys: Keys | None = None) -> Quantized:
        with torch.autocast(f.device.type, enabled=False):
            return self.quantize(f.float(), keys)

    def image(self, z: Tensor) -> Tensor:
        """(B, h, w, d) -> (B, 3, H, W), not clamped."""
        return self.decoder(self.post_quant_conv(rearrange(z, "b h w d -> b d h w")))

    def forward(self, images: Tensor, keys: Keys | None = None) -> Reconstruction:
        f = self.features(images)
        q = self.quantized(f, keys)
        return Reconstruction(self.image(q.z), q.loss, q.logs, f.detach())

    def learn(self, features: Tensor, keys: Keys) -> None:
        if hasattr(self.quantize, "learn"):
            self.quantize.learn(features, keys)

    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        for part in (self.post_quant_conv, self.decoder):
            yield from part.parameters()

    def encode(self, images: Tensor) -> Moments:
        """(B, 3, H, W) in [-1, 1] -> codes (B, d, h, w)."""
        with torch.no_grad():
            z = self.quantize.codes(self.quantized(self.features(images)).indices)
        return Moments(rearrange(z, "b h w d -> b d h w"))

    def decode(self, z: Tensor) -> Tensor:
        """Codes (B, d, h, w) -> (B, 3, H, W), clamped to [-1, 1]."""
        return self.image(rearrange(z, "b d h w -> b h w d")).clamp(-1, 1)

    @property
    def num_codes(self) -> int:
        return self.config.quantizer.num_codes

    def token_maps(self, images: Tensor) -> dict[str, Tensor]:
        """All tokens under the name of their map, for statistics."""
        tokens = self.tokens(images)
        return {f"{tokens.shape[1]}x{tokens.shape[2]}": tokens}

    def tokens(self, images: Tensor) -> Tensor:
        """Indices (B, h, w) or (B, h, w, m) int64."""
        with torch.no_grad():
            return self.quantized(self.features(images)).indices

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        with torch.no_grad():
            return self.image(self.quantize.codes(tokens)).clamp(-1, 1)
