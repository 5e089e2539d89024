"""Networks of text-to-image pipelines of diffusers as backbones of ours, on maps of latents.

Prompts arrive encoded, as `diffusers_prompts.conditions` leaves them in `Cond`; "no condition" is
the negative prompt's. What else a network is told (the image's size, a guidance scale that it was
distilled with) is fixed when it is wrapped.
Sources: Rombach et al. 2022 (Stable Diffusion); Podell et al. 2024 (SDXL, section 2.2: sizes);
Esser et al. 2024 (SD3); Black Forest Labs' released FLUX.1; Chen et al. 2024 (PixArt); Xie et al.
2025 (Sana).
Letters: B rows, C channels and h w size of the latents, H W pixels of the image, L text tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from genvis.types import Cond

FOREIGN = ("class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")


def network_name(pipeline: Any) -> str:
    """ "unet" or "transformer". ValueError if the pipeline has neither."""
    for name in ("unet", "transformer"):
        if getattr(pipeline, name, None) is not None:
            return name
    raise ValueError(f"{type(pipeline).__name__} has no unet or transformer")


def kind_of(network: Any) -> str:
    """The name of its class, also of one that `torch.compile` wraps."""
    return type(getattr(network, "_orig_mod", network)).__name__


@dataclass(frozen=True)
class Told:
    """What a network is told of every image: its pixels (H, W), of which factor x factor make a
    latent; guidance: the scale, for a network that it was distilled into.
    """

    size: tuple[int, int]
    factor: int
    guidance: float


class PromptedNet(nn.Module):
    """The pipeline's network, used as it is. `patch` latents a side make a token."""

    def __init__(self, model: Any, told: Told) -> None:
        super().__init__()
        self.model, self.told = model, told
        if any(pixels % (told.factor * self.patch) for pixels in told.size):
            raise ValueError(
                f"height and width must be multiples of {told.factor * self.patch} for a "
                f"{kind_of(model)}, got {told.size}"
            )

    @property
    def patch(self) -> int:
        return self.model.config.get("patch_size", 1)

    @property
    def channels(self) -> int:
        return self.model.config.in_channels

    @property
    def shape(self) -> tuple[int, int, int]:
        height, width = self.told.size
        return self.channels, height // self.told.factor, width // self.told.factor

    @property
    def learned_variance(self) -> bool:
        return self.model.config.out_channels == 2 * self.model.config.in_channels

    def timing(self, scheduler: Mapping[str, Any], steps: int) -> dict[str, Any]:
        """What the pipeline asks of a scheduler (its config) besides the number of steps: `mu`, the
        logarithm of the shift, is linear in the number of tokens.
        """
        if not scheduler.get("use_dynamic_shifting"):
            return {}
        _, h, w = self.shape
        few, many = scheduler["base_image_seq_len"], scheduler["max_image_seq_len"]
        share = ((h // self.patch) * (w // self.patch) - few) / (many - few)
        return {"mu": (1 - share) * scheduler["base_shift"] + share * scheduler["max_shift"]}

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Output for latents x (B, C, h, w) at timestep t (B,), with 2C channels where learned."""
        if cond.drop is not None and bool(cond.drop.any()):
            raise ValueError("a pipeline's network drops to cond.negative, which is missing")
        return self.call(x, t, cond)

    def call(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        raise NotImplementedError

    def text(self, x: Tensor, cond: Cond) -> Tensor:
        return _given("text", cond.text, x)

    def pooled(self, x: Tensor, cond: Cond) -> Tensor:
        return _given("pooled", cond.pooled, x)


def _given(name: str, leaf: Tensor | None, x: Tensor) -> Tensor:
    if leaf is None:
        raise ValueError(f"cond.{name} is missing: encode the prompts first (`conditions`)")
    return leaf.to(x.dtype)


class StableDiffusionNet(PromptedNet):
    """Of Stable Diffusion, and of SDXL, which sees the pooled text, sizes and crop as well."""

    def __init__(self, model: Any, told: Told) -> None:
        super().__init__(model, told)
        for name in FOREIGN:
            if model.config.get(name) is not None:
                raise ValueError(f"{name} {model.config[name]!r}: `Cond` has nothing for it")
        if model.config.get("addition_embed_type") not in (None, "text_time"):
            raise ValueError(
                f"addition_embed_type must be None or 'text_time', got "
                f"{model.config.addition_embed_type!r}"
            )

    def call(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        added = None
        if self.model.config.get("addition_embed_type"):
            sizes = x.new_tensor([*self.told.size, 0, 0, *self.told.size])  # original, crop, target
            added = {"text_embeds": self.pooled(x, cond), "time_ids": sizes.expand(len(x), -1)}
        text = self.text(x, cond)
        return self.model(x, t, text, added_cond_kwargs=added, return_dict=False)[0]


class StableDiffusion3Net(PromptedNet):
    def call(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        text, pooled = self.text(x, cond), self.pooled(x, cond)
        return self.model(x, text, pooled, timestep=t, return_dict=False)[0]


class FluxNet(PromptedNet):
    """Sees tokens of 2 x 2 latents at their row and column, and 1 where we say t = 1000."""

    @property
    def channels(self) -> int:
        return self.model.config.in_channels // self.patch**2

    @property
    def patch(self) -> int:
        return 2

    def timing(self, scheduler: Mapping[str, Any], steps: int) -> dict[str, Any]:
        """In equal steps before the shift, which the scheduler's own are not."""
        asked = super().timing(scheduler, steps)
        if scheduler.get("use_flow_sigmas"):
            return asked
        return {**asked, "sigmas": [1 - i / steps for i in range(steps)]}

    def call(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        h, w = x.shape[-2] // 2, x.shape[-1] // 2
        text = self.text(x, cond)
        grid = torch.cartesian_prod(torch.arange(1), torch.arange(h), torch.arange(w))
        told = self.model.config.guidance_embeds
        out = self.model(
            rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2),
            text,
            self.pooled(x, cond),
            timestep=t / 1000,
            img_ids=grid.to(x),
            txt_ids=x.new_zeros(text.shape[1], 3),
            guidance=t.new_full((len(x),), self.told.guidance) if told else None,
            return_dict=False,
        )[0]
        return rearrange(out, "b (h w) (c p q) -> b c (h p) (w q)", h=h, p=2, q=2)


class PixArtNet(PromptedNet):
    """The 1024 pixel model of PixArt-alpha sees the image's size and shape as well."""

    def call(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.model.use_additional_conditions:
            height, width = self.told.size
            added = {
                "resolution": x.new_tensor([height, width]).expand(len(x), -1),
                "aspect_ratio": x.new_tensor([height / width]).expand(len(x), -1),
            }
        text, mask = self.text(x, cond), cond.text_mask
        return self.model(x, text, t, added, encoder_attention_mask=mask, return_dict=False)[0]


class SanaNet(PromptedNet):
    def call(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        text, time = self.text(x, cond), t * self.model.config.timestep_scale
        return self.model(x, text, time, encoder_attention_mask=cond.text_mask, return_dict=False)[
            0
        ]


PROMPTED: dict[str, type[PromptedNet]] = {
    "UNet2DConditionModel": StableDiffusionNet,
    "SD3Transformer2DModel": StableDiffusion3Net,
    "FluxTransformer2DModel": FluxNet,
    "PixArtTransformer2DModel": PixArtNet,
    "SanaTransformer2DModel": SanaNet,
}
