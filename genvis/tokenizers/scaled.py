"""Any tokenizer with the shift and scale inside that make its latents unit-scaled.

    tokenizer:
      name: scaled
      tokenizer: {name: pretrained, path: runs/photo_patches_vitok}
      mean: [0.1, -0.3]
      std: [1.2, 0.9]

`train_scripts/scale.py` measures the numbers and writes a model folder with them inside.

Sources: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", one
number for all; Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion
Models", one for each channel. Letters: B batch, c latent channels.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from genvis.config import config
from genvis.random import Keys
from genvis.tokenizers import TOKENIZERS
from genvis.types import Moments, Reconstruction, Tokenizer, TokenizerConfig

Numbers = float | tuple[float, ...]


@config
class ScaledConfig:
    """z = (latent - mean) / std, with one number for all channels or one for each."""

    tokenizer: Annotated[TokenizerConfig, TOKENIZERS]
    mean: Numbers = 0.0
    std: Numbers = 1.0

    def __post_init__(self) -> None:
        if min(self.std if isinstance(self.std, tuple) else (self.std,), default=0) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")

    def build(self) -> "Scaled":
        inner = self.tokenizer.build()
        own = getattr(inner, "config", self.tokenizer)  # not the path that it was loaded from
        return Scaled(replace(self, tokenizer=own), inner)


class Scaled(nn.Module):
    """Around `tokenizer`, which the config describes."""

    def __init__(self, config: ScaledConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer

    def forward(self, images: Tensor, keys: Keys | None = None) -> Reconstruction:
        """As the tokenizer's own, whose loss is that of its latents as they were."""
        tokenizer: Any = self.tokenizer
        made: Reconstruction = tokenizer(images, keys)
        return made

    def learn(self, features: Tensor, keys: Keys) -> None:
        tokenizer: Any = self.tokenizer
        tokenizer.learn(features, keys)

    def encode(self, images: Tensor) -> Moments:
        """(B, 3, H, W) in [-1, 1] -> moments (B, c, ...) of about unit variance. ValueError for a
        tokenizer without moments.
        """
        raw = self.tokenizer.encode(images)
        if not isinstance(raw, Moments):
            raise ValueError(f"only Moments can be scaled, not {type(raw).__name__}")
        mean, std = (self._like(value, raw.mean) for value in (self.config.mean, self.config.std))
        return Moments((raw.mean - mean) / std, None if raw.std is None else raw.std / std)

    def decode(self, z: Tensor) -> Tensor:
        mean, std = (self._like(value, z) for value in (self.config.mean, self.config.std))
        return self.tokenizer.decode(z * std + mean)

    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        """What may be trained further while every latent stays as it is."""
        yield from getattr(self.tokenizer, "decoder_parameters", tuple)()

    def _like(self, value: Numbers, z: Tensor) -> Tensor:
        """The number, or the numbers on the channel axis of z (B, c, ...)."""
        numbers = torch.tensor(value, dtype=z.dtype, device=z.device)
        if numbers.ndim and len(numbers) != z.shape[1]:
            raise ValueError(f"mean and std have {len(numbers)} numbers, latents {z.shape[1]}")
        return numbers.view(-1, *[1] * (z.ndim - 2))


def measure(batches: Iterable[Moments]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each channel, from 10,000 or more latents, those of samples: the variance
    counts what the posteriors add.
    """
    count, total, squares = 0, torch.tensor(0.0), torch.tensor(0.0)
    for batch in batches:
        mean = _channels(batch.mean)
        square = mean.square() + (0 if batch.std is None else _channels(batch.std).square())
        count, total, squares = count + len(mean), total + mean.sum(0), squares + square.sum(0)
    if count < 2:
        raise ValueError(f"measuring a scale needs at least 2 latents, got {count}")
    center = total / count
    spread = (squares / count - center.square()).clamp(min=1e-12).sqrt()
    return tuple(center.tolist()), tuple(spread.tolist())


def _channels(x: Tensor) -> Tensor:
    """(B, c, ...) -> (N, c) float64 on the CPU."""
    return x.detach().double().cpu().movedim(1, -1).flatten(0, -2)
