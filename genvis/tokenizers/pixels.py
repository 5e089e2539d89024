"""Pixels as latents: no compression, only a choice of channels and a unit scale."""

from torch import Tensor, nn

from genvis.config import config
from genvis.types import Moments


@config
class PixelsConfig:
    channels: int = 3  # 1 for grey data, whose three channels are equal
    mean: float = 0.0  # of the pixels in [-1, 1]
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels}")
        if self.std <= 0:
            raise ValueError(f"std must be positive, got {self.std}")

    def build(self) -> "Pixels":
        return Pixels(self)


class Pixels(nn.Module):
    def __init__(self, config: PixelsConfig) -> None:
        super().__init__()
        self.config = config

    def encode(self, images: Tensor) -> Moments:
        """(B, 3, H, W) in [-1, 1] -> (B, C, H, W) of about unit variance."""
        z = images.mean(1, keepdim=True) if self.config.channels == 1 else images
        return Moments((z - self.config.mean) / self.config.std)

    def decode(self, z: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 3, H, W), clamped to [-1, 1]."""
        images = (z * self.config.std + self.config.mean).clamp(-1, 1)
        return images.expand(-1, 3, -1, -1)
