"""PixArt and the UNet of latent diffusion, as diffusers computes and stores them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genvis.backbones.pixart import PixArtConfig
from genvis.backbones.unet_ldm import LDMUNetConfig
from genvis.config import ConfigError
from genvis.integrations import from_official
from genvis.integrations.diffusers_text import (
    diffusers_pixart,
    pixart_to_diffusers,
    unet_to_diffusers,
)
from genvis.nn.norms import Norms
from genvis.nn.skips import Constant
from genvis.random import HashKeys
from genvis.types import Cond

diffusers = pytest.importorskip("diffusers")

PIXART = PixArtConfig(size=8, width=24, depth=2, heads=2, text_width=6, learned_variance=True)
UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 8, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": (1, 2, 4),
    "cross_attention_dim": 6,
}
SDXL = {
    "transformer_layers_per_block": (1, 2, 3),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 5 + 6 * 256,
}
SD = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 2,
    "layers_per_block": 2,
}
T = torch.tensor([3.0, 900.0])
MASK = torch.arange(4) < torch.tensor([2, 4])[:, None]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return HashKeys.of(seed, range(shape[0])).normal(shape[1:])


def noisy(net: Any, std: float = 0.1) -> Any:
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.data += std * torch.randn(parameter.shape, generator=generator)
    return net.eval().requires_grad_(False)


TEXT, POOLED = normal(2, 4, 6, seed=1), normal(2, 5, seed=2)


@pytest.mark.parametrize(
    "config",
    [PIXART, replace(PIXART, learned_variance=False, span=2.0, pixels=8)],
    ids=["plain", "sizes"],
)
def test_a_pixart_computes_the_same_in_both(config: PixArtConfig) -> None:
    net = noisy(config.build())
    theirs, x = diffusers_pixart(net), normal(2, 4, 8, 8)
    sizes = torch.tensor([[64.0, 64.0]] * 2) if config.pixels else None
    ratio = torch.tensor([[1.0]] * 2) if config.pixels else None
    out = theirs(
        x,
        encoder_hidden_states=TEXT,
        timestep=T,
        added_cond_kwargs={"resolution": sizes, "aspect_ratio": ratio},
        encoder_attention_mask=MASK,
    ).sample
    ours = net(x, T, Cond(text=TEXT, text_mask=MASK))
    torch.testing.assert_close(out, ours, rtol=1e-4, atol=1e-5)

    made = from_official("pixart_diffusers", theirs.state_dict(), dict(theirs.config))
    assert made.config == replace(config, null_caption=False)
    assert all(torch.equal(net.state_dict()[k], v) for k, v in made.state_dict().items())


def test_pixarts_that_do_not_fit_are_named() -> None:
    net = noisy(PIXART.build())
    config, state = pixart_to_diffusers(net)
    for name in ("transformer_blocks.1.attn2.to_v.bias", "caption_projection.linear_1.weight"):
        with pytest.raises(ValueError, match=f"1 missing \\({name}\\)"):
            from_official("pixart_diffusers", {k: v for k, v in state.items() if k != name}, config)
        with pytest.raises(ValueError, match="1 extra"):
            from_official("pixart_diffusers", {**state, name + "x": state[name]}, config)
    for change, why in (
        ({"norm_type": "ada_norm_zero"}, "norm_type must be 'ada_norm_single' for a PixArt"),
        ({"caption_channels": None}, "a PixArt has caption_channels"),
        ({"out_channels": 5}, "out_channels must be in_channels or twice that, got 5"),
        ({"depth": 3}, "has no argument 'depth'"),
    ):
        with pytest.raises(ConfigError, match=why):
            from_official("pixart_diffusers", state, {**config, **change})
    for other in (replace(PIXART, size=(4, 8)), replace(PIXART, norms=Norms(qk=True))):
        with pytest.raises(ValueError, match="square maps, mlp_ratio 4 and plain norms only"):
            pixart_to_diffusers(other.build())


@pytest.mark.parametrize("more", [{}, SD, SDXL], ids=["plain", "sd", "sdxl"])
def test_a_unet_computes_the_same_in_both(more: dict[str, Any]) -> None:
    theirs = noisy(diffusers.UNet2DConditionModel(**{**UNET, **more}))
    net = from_official("unet_diffusers", theirs.state_dict(), dict(theirs.config))
    x, size = normal(2, 4, 9, 12), [72.0, 96.0]
    added = {"text_embeds": POOLED, "time_ids": torch.tensor([[*size, 0, 0, *size]] * 2)}
    out = theirs(x, T, TEXT, encoder_attention_mask=MASK, added_cond_kwargs=added).sample
    ours = net(x, T, Cond(text=TEXT, text_mask=MASK, pooled=POOLED))
    torch.testing.assert_close(out, ours, rtol=1e-4, atol=1e-5)
    assert out.abs().mean() > 0.1  # more than rounding was compared

    config, state = unet_to_diffusers(net)
    again = diffusers.UNet2DConditionModel(**config).eval()
    again.load_state_dict(state)
    out = again(x, T, TEXT, encoder_attention_mask=MASK, added_cond_kwargs=added).sample
    torch.testing.assert_close(out, ours, rtol=1e-4, atol=1e-5)
    assert from_official("unet_diffusers", state, dict(again.config)).config == net.config


def test_unets_that_do_not_fit_are_named() -> None:
    theirs = diffusers.UNet2DConditionModel(**UNET)
    state, config = theirs.state_dict(), dict(theirs.config)
    for change, why in (
        ({"resnet_time_scale_shift": "scale_shift"}, "must be 'default' for our UNet"),
        ({"class_embed_type": "timestep"}, "class_embed_type must be None"),
        ({"block_out_channels": (8, 12, 16)}, "must be multiples of the first"),
        ({"up_block_types": config["up_block_types"][::-1]}, "and their mirror images"),
        ({"addition_embed_type": "text"}, "addition_embed_type must be None, or 'text_time'"),
        ({"out_channels": 8}, "out_channels must be in_channels 4, got 8"),
        ({"depth": 3}, "has no argument 'depth'"),
    ):
        with pytest.raises(ConfigError, match=why):
            from_official("unet_diffusers", state, {**config, **change})
    with pytest.raises(ValueError, match=r"diffusers UNet: .* 1 extra \(x\)"):
        from_official("unet_diffusers", {**state, "x": TEXT}, config)
    tiny = from_official("unet_diffusers", state, config).config
    assert isinstance(tiny, LDMUNetConfig)
    for other in (
        replace(tiny, skips=Constant()),
        replace(tiny, middle=0),
        replace(tiny, middle=2),
    ):
        with pytest.raises(ValueError, match="in the middle as many transformer blocks"):
            unet_to_diffusers(other.build())
    with pytest.raises(ValueError, match="together with the image's size"):
        unet_to_diffusers(replace(tiny, pooled_width=5).build())
    assert isinstance(theirs, nn.Module)
