"""A discriminator of patches: one logit for each place of an image.

Source: Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks",
section 3.2.2; group norms instead of batch norms, so that no image depends on its neighbours.
Letters: B batch, H W image size, h w map of logits.
"""

import math

from torch import Tensor, nn

from genvis.config import config


@config
class PatchDiscriminatorConfig:
    width: int = 64
    halvings: int = 3  # 3 see patches of 70 x 70 pixels, 2 of 34 x 34, 1 of 16 x 16

    def __post_init__(self) -> None:
        if self.width < 4 or self.width % 4 or self.halvings < 1:
            raise ValueError(
                "width must be a positive multiple of 4 and halvings at least 1, got "
                f"{self.width} and {self.halvings}"
            )

    def build(self) -> "PatchDiscriminator":
        return PatchDiscriminator(self)


class PatchDiscriminator(nn.Module):
    def __init__(self, config: PatchDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * min(2**k, 8) for k in range(config.halvings + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for k in range(config.halvings):
            stride = 2 if k + 1 < config.halvings else 1
            layers += [
                nn.Conv2d(widths[k], widths[k + 1], 4, stride, 1, bias=False),
                nn.GroupNorm(math.gcd(32, widths[k + 1] // 4), widths[k + 1]),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> logits (B, h, w), high for real ones."""
        least = 2 ** (self.config.halvings + 2)
        if min(images.shape[2:]) < least:
            raise ValueError(
                f"a discriminator with {self.config.halvings} halvings needs images of at least "
                f"{least} pixels a side, got {tuple(images.shape)}"
            )
        return self.layers(images)[:, 0]
