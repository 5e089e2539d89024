"""A generator of ours inside a pipeline of diffusers: its network and tokenizer in their shapes.

    DiTPipeline(transformer=NetForDiffusers(generator, scheduler),
                vae=TokenizerForDiffusers(generator.tokenizer), scheduler=scheduler)

The pipeline does the sampling, with its own scheduler and its own random numbers; such a pipeline
lives in memory: its `save_pretrained` leaves our parts out, and says so.
Letters: B images, C channels, H W map size, L text tokens, S their width, K classes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genvis.integrations.diffusers_models import diffusers_class
from genvis.integrations.diffusers_scheduler import schedule_of
from genvis.processes.along import Along
from genvis.processes.denoiser import like
from genvis.samplers.generator import NOTHING_GUIDED, Generator, Guidance
from genvis.types import Cond, Denoise, Tokenizer


@dataclass(frozen=True)
class Output:
    """What pipelines take `.sample` of, or unpack."""

    sample: Tensor


@dataclass(frozen=True)
class LatentDist:
    """Moments as diffusers has them: drawn from with a torch generator, not with keys."""

    mean: Tensor
    std: Tensor | None

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        if self.std is None:
            return self.mean
        draw = diffusers_class("randn_tensor", "diffusers.utils.torch_utils")
        shape, device, dtype = self.mean.shape, self.mean.device, self.mean.dtype
        noise: Tensor = draw(shape, generator=generator, device=device, dtype=dtype)
        return self.mean + self.std * noise


@dataclass(frozen=True)
class Encoded:
    latent_dist: LatentDist


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
        return Output(out) if return_dict else (out,)

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
    """A tokenizer as a `vae` whose latents are scaled already (scaling_factor 1)."""

    def __init__(self, tokenizer: Tokenizer, latent_channels: int = 4) -> None:
        super().__init__(
            scaling_factor=1.0, shift_factor=None, latent_channels=latent_channels, in_channels=3
        )
        self.tokenizer = tokenizer

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        moments = self.tokenizer.encode(x)
        found = Encoded(LatentDist(moments.mean, moments.std))
        return found if return_dict else (found.latent_dist,)

    def decode(self, z: Tensor, return_dict: bool = True) -> Any:
        images = self.tokenizer.decode(z)
        return Output(images) if return_dict else (images,)
