"""A generator of ours inside a pipeline of diffusers: its network and tokenizer in their shapes.

    DiTPipeline(transformer=NetForDiffusers(generator, scheduler),
                vae=TokenizerForDiffusers(generator.tokenizer, latent_channels=4, factor=8),
                scheduler=scheduler)

The pipeline does the sampling, with its own scheduler and its own random numbers; such a pipeline
lives in memory: its `save_pretrained` leaves our parts out, and says so.
Letters: B images, C channels, H W map size, L text tokens, S their width, K classes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from genvis.integrations.diffusers_models import diffusers_class
from genvis.integrations.diffusers_scheduler import schedule_of
from genvis.processes.along import Along
from genvis.processes.denoiser import like
from genvis.samplers.generator import NOTHING_GUIDED, Generator, Guidance
from genvis.tokenizers.tiled import tiled, tiled_encode
from genvis.types import Cond, Denoise, Moments, Tokenizer

VAE, OUTPUTS = "diffusers.models.autoencoders.vae", "diffusers.models.modeling_outputs"


class _Shaped(nn.Module):
    """What pipelines ask every part for: config, dtype, device."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        frozen = diffusers_class("FrozenDict", "diffusers.configuration_utils")
        self.config = frozen(config)  # read by key, by attribute and by hasattr

    @property
    def dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.parameters()), torch.float32)

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))


class NetForDiffusers(_Shaped):
    """The generator's network as a `unet` or `transformer` that predicts what `scheduler` expects.

    Any of our predictions becomes that of the scheduler through (x0, eps), any process its process
    (`Along`), so a flow runs under DDIM. A learned variance is left out. The network is the
    generator's own: moving the pipeline moves it. ValueError if the scheduler has no counterpart.
    """

    def __init__(
        self, generator: Generator, scheduler: Any, guidance: Guidance = NOTHING_GUIDED
    ) -> None:
        channels, height, width = generator.config.backbone.shape
        super().__init__(
            in_channels=channels,
            out_channels=channels,
            sample_size=height if height == width else (height, width),
            num_class_embeds=generator.config.backbone.num_classes or None,
        )
        self.net = generator.net
        self.schedule = schedule_of(scheduler)
        self.num_classes = generator.config.backbone.num_classes
        process = self.schedule.process
        denoise = generator.denoiser(guidance)
        self.denoise: Denoise = denoise if denoise.process == process else Along(denoise, process)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """sample (B, C, H, W), scaled as the scheduler does; timestep (), (1,) or (B,), all equal.

        class_labels (B,): K and above, or none at all, is "no label" (`DiTPipeline` writes 1000);
        encoder_hidden_states (B, L, S). Nothing else is understood.
        """
        process, prediction = self.schedule.process, self.schedule.prediction
        times = self.schedule.time(torch.as_tensor(timestep).cpu()).unique()
        if len(times) != 1:
            raise ValueError(f"all rows must have one timestep, got {len(times)}")
        t, x = times[0], sample.float()
        scale, _ = prediction.inputs(process, t)
        x = x / like(scale, x)
        found = self.denoise(x, t, self._cond(len(x), class_labels, encoder_hidden_states))
        p, q = prediction.row(process, t)
        out = (like(p, x) * found.x0 + like(q, x) * found.eps).to(sample.dtype)
        if not return_dict:
            return (out,)
        return diffusers_class("Transformer2DModelOutput", OUTPUTS)(sample=out)

    def _cond(self, rows: int, label: Tensor | None, text: Tensor | None) -> Cond:
        if not self.num_classes:
            return Cond(text=text)
        if label is None:
            drop = torch.ones(rows, dtype=torch.bool, device=self.device)
            return Cond(text=text, drop=drop)
        null = label >= self.num_classes
        known = label.masked_fill(null, 0)
        return Cond(label=known, text=text, drop=null if bool(null.any()) else None)


class TokenizerForDiffusers(_Shaped):
    """A tokenizer as a `vae`, with the methods of `AutoencoderKL`: outputs and distributions are
    those of diffusers, slicing and tiling are of this view.

    Latents are scaled already (scaling_factor 1, no shift). factor: pixels a side of a latent cell.
    """

    def __init__(self, tokenizer: Tokenizer, latent_channels: int, factor: int) -> None:
        if factor < 1 or factor & (factor - 1):
            raise ValueError(f"factor must be a power of 2, as pipelines compute it, got {factor}")
        super().__init__(
            scaling_factor=1.0,
            shift_factor=None,
            latent_channels=latent_channels,
            in_channels=3,
            block_out_channels=(latent_channels,) * factor.bit_length(),  # only its length is read
        )
        self.tokenizer, self.factor = tokenizer, factor
        self.slicing = False
        self.tile: tuple[int, int] | None = None  # size and overlap in latent cells

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
        """Images (B, 3, H, W) in [-1, 1]; the code is `.latent_dist`."""
        rows = [self._moments(part) for part in self._rows(x)]
        mean = torch.cat([row.mean for row in rows])
        stds = [row.std for row in rows if row.std is not None]
        logvar = 2 * torch.cat(stds).log() if stds else torch.zeros_like(mean)
        gaussian = diffusers_class("DiagonalGaussianDistribution", VAE)
        dist = gaussian(torch.cat([mean, logvar], dim=1), deterministic=not stds)
        if not return_dict:
            return (dist,)
        return diffusers_class("AutoencoderKLOutput", OUTPUTS)(latent_dist=dist)

    def decode(self, z: Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        """Latents (B, c, h, w); the images are `.sample`. Nothing is drawn from the generator."""
        images = torch.cat([self._images(part) for part in self._rows(z)])
        return diffusers_class("DecoderOutput", VAE)(sample=images) if return_dict else (images,)

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
