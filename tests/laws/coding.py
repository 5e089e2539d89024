"""Small stochastic tokenizers from outside genvis: random weights, no training."""

import torch
from torch import Tensor, nn

from genvis.config import config
from genvis.types import Moments


@config
class BlurConfig:
    """Halves both sides; broken: example values above the threshold become NaN."""

    seed: int = 0
    broken_above: float | None = None
    scale: float = 1.0

    def build(self) -> "Blur":
        return Blur(self)


class Blur(nn.Module):
    def __init__(self, config: BlurConfig) -> None:
        super().__init__()
        self.config = config
        numbers = torch.Generator().manual_seed(config.seed)
        weight = torch.randn(8, 3, 3, 3, generator=numbers) / 27**0.5
        self.encoder = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.decoder = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.encoder.weight.data = weight

    def decoder_parameters(self) -> object:
        return self.decoder.parameters()

    def encode(self, images: Tensor) -> Moments:
        mean, logvar = self.encoder(images).chunk(2, 1)
        if self.config.broken_above is not None:
            mean = mean.where(images.mean((1, 2, 3), True) < self.config.broken_above, torch.nan)
        return Moments(self.config.scale * mean, (logvar / 2).exp())

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z).clamp(-1, 1)
