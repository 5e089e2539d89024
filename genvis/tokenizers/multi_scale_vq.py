"""VAR's tokenizer: a convolutional auto-encoder around a multi-scale residual quantizer.

Source: Tian et al. 2024, "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale
Prediction", section 3.2. Letters: B rows, C code width, H side of the latent map, K scales of n_k =
p_k^2 tokens, L the sum of n_k.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from genvis.checkpoint import load_state
from genvis.config import build, check_arguments, config, renamed
from genvis.random import Keys
from genvis.tokenizers.conv import ConvConfig, Decoder, Encoder
from genvis.tokenizers.quantizers.multi_scale import MultiScale, MultiScaleConfig, scale_statistics
from genvis.types import Pyramid, Reconstruction

NETS = ConvConfig()
SCALES = MultiScaleConfig()


@config
class MultiScaleVQConfig:
    """The defaults are the released tokenizer for 256 pixels."""

    nets: ConvConfig = NETS
    quantizer: MultiScaleConfig = SCALES
    kernel: int = 3  # of the convolutions beside the quantizer

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {self.kernel}")

    @property
    def size(self) -> int:
        """The side of the images, in pixels."""
        return self.quantizer.scales[-1] * self.nets.factor

    def build(self) -> "MultiScaleVQ":
        return MultiScaleVQ(self)


class MultiScaleVQ(nn.Module):
    """A `ScaleTokenizer`; calling it reconstructs images for training."""

    def __init__(self, config: MultiScaleVQConfig) -> None:
        super().__init__()
        self.config = config
        width, k = config.quantizer.width, config.kernel
        self.encoder = Encoder(config.nets, width)
        self.quant_conv = nn.Conv2d(width, width, k, padding=k // 2)
        self.quantize = MultiScale(config.quantizer)
        self.post_quant_conv = nn.Conv2d(width, width, k, padding=k // 2)
        self.decoder = Decoder(config.nets, width)

    @property
    def scales(self) -> tuple[int, ...]:
        return self.config.quantizer.scales

    @property
    def num_codes(self) -> int:
        return self.config.quantizer.codes

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w), before quantization. ValueError for images of another size
        than the last scale's.
        """
        size = self.config.size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(
                f"images must be (B, 3, {size}, {size}), as scales end at {self.scales[-1]}, got "
                f"{tuple(images.shape)}"
            )
        return self.quant_conv(self.encoder(images))

    def image(self, f_hat: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W), not clamped."""
        return self.decoder(self.post_quant_conv(f_hat))

    def forward(self, images: Tensor, keys: Keys | None = None) -> Reconstruction:
        f = self.features(images)
        with torch.autocast(f.device.type, enabled=False):
            q = self.quantize(f.float())
        logs = scale_statistics(q.tokens, self.scales, self.num_codes)
        return Reconstruction(self.image(q.f_hat), q.loss, logs, f.detach())

    def learn(self, features: Tensor, keys: Keys) -> None:
        self.quantize.learn(features, keys)

    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        for part in (self.post_quant_conv, self.decoder):
            yield from part.parameters()

    def encode(self, images: Tensor) -> Pyramid:
        with torch.no_grad():
            return self.pyramid(self.quantize(self.features(images)).tokens)

    def token_maps(self, images: Tensor) -> dict[str, Tensor]:
        """The tokens (B, n_k) of each scale under names such as 2x2, for statistics."""
        tokens = self.encode(images).tokens
        return {f"{p}x{p}": found for p, found in zip(self.scales, tokens, strict=True)}

    def pyramid(self, tokens: tuple[Tensor, ...]) -> Pyramid:
        """Tokens with the inputs that a network has when it predicts them."""
        f_hat, inputs = self.blank(len(tokens[0])), []
        for k, given in enumerate(tokens[:-1]):
            f_hat = self.accumulate(f_hat, given, k)
            inputs.append(self.next_input(f_hat, k + 1))
        width = self.config.quantizer.width
        none = f_hat.new_zeros(len(f_hat), 0, width)
        return Pyramid(tuple(tokens), torch.cat([none, *inputs], dim=1))

    def blank(self, batch: int) -> Tensor:
        like, side = self.quantize.embedding.weight, self.scales[-1]
        return torch.zeros(batch, like.shape[1], side, side, device=like.device)

    def accumulate(self, f_hat: Tensor, tokens: Tensor, scale: int) -> Tensor:
        with torch.no_grad():
            return f_hat + self.quantize.grow(tokens, scale, f_hat.shape[-1])

    def next_input(self, f_hat: Tensor, scale: int) -> Tensor:
        return self.quantize.shrink(f_hat, scale)

    def decode(self, f_hat: Tensor) -> Tensor:
        with torch.no_grad():
            return self.image(f_hat).clamp(-1, 1)

    def previews(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """The image after each scale, each (B, 3, H, W)."""
        f_hat, images = self.blank(len(tokens[0])), []
        for k, given in enumerate(tokens):
            f_hat = self.accumulate(f_hat, given, k)
            images.append(self.decode(f_hat))
        return images


OFFICIAL_NETS = {
    "ch": "width",
    "ch_mult": "multipliers",
    "num_res_blocks": "blocks",
    "norm_groups": "groups",
    "dropout": "dropout",
}
OFFICIAL_QUANTIZER = {
    "vocab_size": "codes",
    "z_channels": "width",
    "Cvae": "width",
    "v_patch_nums": "scales",
    "beta": "beta",
    "using_znorm": "cosine",
}
OFFICIAL_PHI = ("quant_resi", "share_quant_resi", "default_qresi_counts")
KERNEL = {"quant_conv_ks": "kernel"}
NO_EFFECT = ("test_mode",)
LAYOUTS = {"quant_resi.qresi.": "phi.0.", "quant_resi.qresi_ls.": "phi.", "quant_resi.": "phi."}


def quantizer_config(official: Mapping[str, Any]) -> MultiScaleConfig:
    """From the arguments of the released VQVAE or VectorQuantizer2; what is not given is that of
    the released weights.
    """
    strength = official.get("quant_resi", SCALES.strength)
    if isinstance(strength, int | float):
        strength = float(abs(strength)) if abs(strength) > 1e-6 else 0.0
    fields = renamed(official, OFFICIAL_QUANTIZER)
    shared = official.get("share_quant_resi", SCALES.phi)
    phi = shared or official.get("default_qresi_counts", 0)
    return build(MultiScaleConfig, {**fields, "phi": phi, "strength": strength})


def quantizer_state(
    state: Mapping[str, Tensor], net: MultiScale, complete: bool = True
) -> dict[str, Tensor]:
    """The released quantizer's tensors by our names; `complete` with counts of our own.

    Its convolutions are `quant_resi.qresi_ls.K` if shared, `quant_resi.qresi` if there is one and
    `quant_resi.K` if every scale has its own. Its counts of uses, which only its training reads and
    which depend on the schedule, are left.
    """
    ours = {}
    for name, value in state.items():
        if name != "ema_vocab_hit_SV":
            for theirs, mine in LAYOUTS.items():
                name = name.replace(theirs, mine)
            ours[name] = value
    if complete:
        ours |= {"uses": net.uses, "started": torch.tensor(True)}
    return ours


def from_official(official: Mapping[str, Any], state: Mapping[str, Tensor]) -> MultiScaleVQ:
    """From the arguments and tensors of the released VQVAE; without arguments, of its weights.

    It has 32 groups, multipliers (1, 1, 2, 2, 4) and 2 blocks built in; `norm_groups`, `ch_mult`
    and `num_res_blocks` say otherwise.
    """
    known = (*OFFICIAL_NETS, *OFFICIAL_QUANTIZER, *OFFICIAL_PHI, *KERNEL, *NO_EFFECT)
    check_arguments(official, known, "the released VQVAE")
    nets = build(ConvConfig, renamed(official, OFFICIAL_NETS))
    quantizer = quantizer_config(official)
    made = replace(MultiScaleVQConfig(nets=nets, quantizer=quantizer), **renamed(official, KERNEL))
    net = made.build()
    inner = {k[9:]: v for k, v in state.items() if k.startswith("quantize.")}
    ours = {k: v for k, v in state.items() if not k.startswith("quantize.")}
    for name, value in quantizer_state(inner, net.quantize).items():
        ours[f"quantize.{name}"] = value
    load_state(net, ours, "official VAR tokenizer")
    return net
