"""A tokenizer with the methods that users of diffusers' `AutoencoderKL` know. Needs no diffusers.

    vae = DiffusersView(tokenizer, latent_channels=16, factor=16)
    z = vae.encode(images).latent_dist.sample(generator)
    images = vae.decode(z).sample

Latents are unit-scaled already, so `config.scaling_factor` is 1 and there is no shift.
Letters: B images, c channels of the latents, f pixels a side of a latent cell.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from genvis.tokenizers.gaussian import DiagonalGaussian
from genvis.tokenizers.tiled import tiled, tiled_encode
from genvis.types import Moments, Tokenizer


class LatentDist(DiagonalGaussian):
    """Drawn from with a torch generator, the global one by default, and not with keys."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor:  # type: ignore[override]
        source = self.mean.device if generator is None else generator.device
        noise = torch.randn(
            self.mean.shape, generator=generator, device=source, dtype=self.mean.dtype
        )
        return self.mean + self.std * noise.to(self.mean.device)


@dataclass(frozen=True)
class Encoded:
    latent_dist: LatentDist


@dataclass(frozen=True)
class Decoded:
    sample: Tensor


class DiffusersView(nn.Module):
    """`tokenizer` stays what it is; slicing and tiling are of this view."""

    def __init__(self, tokenizer: Tokenizer, latent_channels: int, factor: int) -> None:
        super().__init__()
        if factor < 1 or factor & (factor - 1):
            raise ValueError(f"factor must be a power of 2, as pipelines compute it, got {factor}")
        self.tokenizer, self.factor = tokenizer, factor
        self.slicing = False
        self.tile: tuple[int, int] | None = None  # size and overlap in latent cells
        levels = factor.bit_length()
        self.config = SimpleNamespace(
            scaling_factor=1.0,
            shift_factor=None,
            latent_channels=latent_channels,
            block_out_channels=(latent_channels,) * levels,  # only its length is read
        )

    @property
    def dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.parameters()), torch.float32)

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def enable_slicing(self) -> None:
        """Rows one by one, with the same result."""
        self.slicing = True

    def disable_slicing(self) -> None:
        self.slicing = False

    def enable_tiling(self, tile: int = 32, overlap: int = 8) -> None:
        """Latent maps above `tile` cells a side in parts; see `tiled` for what that changes."""
        self.tile = tile, overlap

    def disable_tiling(self) -> None:
        self.tile = None

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        rows = [self._moments(part) for part in self._rows(x)]
        mean = torch.cat([row.mean for row in rows])
        stds = [row.std for row in rows if row.std is not None]
        if stds:
            dist = LatentDist(mean, 2 * torch.cat(stds).log())
        else:
            dist = LatentDist(mean, torch.zeros_like(mean), deterministic=True)
        return Encoded(dist) if return_dict else (dist,)

    def decode(self, z: Tensor, return_dict: bool = True) -> Any:
        images = torch.cat([self._images(part) for part in self._rows(z)])
        return Decoded(images) if return_dict else (images,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Images through the code and back; the code is the mode unless `sample_posterior`."""
        dist = self.encode(sample).latent_dist
        z = dist.sample(generator) if sample_posterior else dist.mode()
        return self.decode(z, return_dict)

    def _rows(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(1) if self.slicing else (x,)

    def _moments(self, images: Tensor) -> Moments:
        if self.tile is None:
            return self.tokenizer.encode(images)
        return tiled_encode(self.tokenizer, images, self.factor, *self.tile)

    def _images(self, z: Tensor) -> Tensor:
        if self.tile is None:
            return self.tokenizer.decode(z)
        return tiled(self.tokenizer.decode, z, *self.tile, write=self.factor)
