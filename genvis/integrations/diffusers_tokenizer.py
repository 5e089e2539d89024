"""Auto-encoders of diffusers as tokenizers: images in [-1, 1] to unit-scaled latents and back.

diffusers leaves the scaling to who calls; here it is inside, as its config gives it: a shift and a
scale (Rombach et al. 2022, section 3.3 and appendix G), or a mean and a standard deviation for
every channel, or both, as SDXL's configs have them.
Letters: B images, C channels and h w size of the latents, f how often both sides are halved.
"""

from typing import Any

import torch
from torch import Tensor, nn

from genvis.config import config
from genvis.integrations.diffusers_models import load
from genvis.types import Moments

AUTOENCODERS = ("AutoencoderKL", "AutoencoderDC")


@config
class DiffusersTokenizerConfig:
    """source: a local folder or a hub id of an `AutoencoderKL` or `AutoencoderDC`."""

    source: str
    subfolder: str | None = None  # "vae" where the source is a whole pipeline

    def build(self) -> "DiffusersTokenizer":
        return DiffusersTokenizer(self, load(self.source, AUTOENCODERS, self.subfolder))


class DiffusersTokenizer(nn.Module):
    """z = (latent - shift) / spread, channel by channel; config None: around a model at hand."""

    shift: Tensor
    spread: Tensor

    def __init__(self, config: DiffusersTokenizerConfig | None, model: Any) -> None:
        super().__init__()
        if model.config.in_channels != 3:
            raise ValueError(f"images have 3 channels, this encoder {model.config.in_channels}")
        self.config, self.model = config, model
        shift, spread = latent_scale(model.config)
        self.register_buffer("shift", shift, persistent=False)
        self.register_buffer("spread", spread, persistent=False)

    def encode(self, images: Tensor) -> Moments:
        """(B, 3, H, W) in [-1, 1] -> moments of (B, C, h, w); an `AutoencoderDC` has no std."""
        found = self.model.encode(images.to(self.model.dtype))
        if not hasattr(found, "latent_dist"):
            return Moments((found.latent.to(images.dtype) - self.shift) / self.spread)
        mean, std = (v.to(images.dtype) for v in (found.latent_dist.mean, found.latent_dist.std))
        return Moments((mean - self.shift) / self.spread, std / self.spread)

    def decode(self, z: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W), clamped to [-1, 1]."""
        latent = (z * self.spread + self.shift).to(self.model.dtype)
        images: Tensor = self.model.decode(latent).sample.to(z.dtype).clamp(-1, 1)
        return images


def latent_scale(config: Any) -> tuple[Tensor, Tensor]:
    """Shift and spread of the latents, (C or 1, 1, 1), from an auto-encoder's config."""
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if (mean is None) != (std is None):
        raise ValueError("latents_mean and latents_std must be given together")
    shift = torch.tensor(config.get("shift_factor") or 0.0 if mean is None else mean)
    spread = torch.tensor(1.0 if std is None else std) / config["scaling_factor"]
    return shift.view(-1, 1, 1), spread.view(-1, 1, 1)
