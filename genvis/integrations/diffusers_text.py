"""Weights of text-conditional networks in the layouts of diffusers, in and out.

`PixArtTransformer2DModel` (PixArt-alpha) is renamed, and q, k and v, which are apart there, joined.
It has no null caption: the caller's null is the encoded empty prompt, as cond.negative.
`UNet2DConditionModel` (Stable Diffusion 1 and 2, SDXL) has our names; its convolutions of one pixel
around transformers are linear layers here.
Letters: N number of a block.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from genvis.backbones.pixart import PixArt, PixArtConfig
from genvis.backbones.unet_ldm import LDMUNet, LDMUNetConfig
from genvis.checkpoint import load_state
from genvis.config import ConfigError, build, check_arguments
from genvis.integrations.diffusers_models import ENDINGS, check_fixed, diffusers_class
from genvis.nn.norms import Norms
from genvis.nn.skips import Unscaled

IGNORED = ("_diffusers_version", "_name_or_path", "_class_name", "_use_default_values")

PIXART = {  # ours: theirs
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "adaln_single.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "adaln_single.emb.timestep_embedder.linear_2",
    "t_block.1": "adaln_single.linear",
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
    "final_layer.linear": "proj_out",
}
PIXART_SIZES = {
    "csize_embedder.mlp.0": "adaln_single.emb.resolution_embedder.linear_1",
    "csize_embedder.mlp.2": "adaln_single.emb.resolution_embedder.linear_2",
    "ar_embedder.mlp.0": "adaln_single.emb.aspect_ratio_embedder.linear_1",
    "ar_embedder.mlp.2": "adaln_single.emb.aspect_ratio_embedder.linear_2",
}
PIXART_BLOCK = {
    "attn.proj": "attn1.to_out.0",
    "cross_attn.q_linear": "attn2.to_q",
    "cross_attn.proj": "attn2.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
PIXART_JOINED = {"attn.qkv": "attn1.to_{}", "cross_attn.kv_linear": "attn2.to_{}"}
PIXART_ARGUMENTS: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "caption_channels": None,
    "interpolation_scale": None,
    "use_additional_conditions": None,
    "cross_attention_dim": 1152,
}
PIXART_FIXED: dict[str, tuple[Any, ...]] = {
    "dropout": (0.0,),
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "attention_type": ("default", None),
    "norm_type": ("ada_norm_single",),
    "norm_elementwise_affine": (False,),
    "norm_eps": (1e-6,),
    "upcast_attention": (False, None),
    "use_linear_projection": (False, None),
    "double_self_attention": (False, None),
    "only_cross_attention": (False, None),
    "num_vector_embeds": (None,),
}
PIXART_IGNORED = ("norm_num_groups", "num_embeds_ada_norm")


def pixart_from_official(official: Mapping[str, Any], state: Mapping[str, Tensor]) -> PixArt:
    """A PixArt from diffusers' config (the content of `config.json`) and state dict.

    ConfigError names an option that our PixArt does not have; ValueError what is missing, extra or
    of another shape.
    """
    known = (*PIXART_ARGUMENTS, *PIXART_FIXED, *PIXART_IGNORED, *IGNORED)
    check_arguments(official, known, "PixArtTransformer2DModel")
    check_fixed(official, PIXART_FIXED, "a PixArt")
    given = {**PIXART_ARGUMENTS, **official}
    side, out = given["sample_size"], given["out_channels"] or given["in_channels"]
    width = given["num_attention_heads"] * given["attention_head_dim"]
    if given["caption_channels"] is None or given["cross_attention_dim"] != width:
        raise ConfigError(
            f"a PixArt has caption_channels and cross_attention_dim {width}, got "
            f"{given['caption_channels']} and {given['cross_attention_dim']}"
        )
    if out not in (given["in_channels"], 2 * given["in_channels"]):
        raise ConfigError(f"out_channels must be in_channels or twice that, got {out}")
    scale = given["interpolation_scale"] or max(side // 64, 1)
    sizes = given["use_additional_conditions"]
    fields = {
        "size": side,
        "patch": given["patch_size"],
        "channels": given["in_channels"],
        "width": width,
        "depth": given["num_layers"],
        "heads": given["num_attention_heads"],
        "text_width": given["caption_channels"],
        "null_caption": False,
        "span": None if scale == 1 else side // given["patch_size"] / scale,
        "pixels": 8 if (side == 128 if sizes is None else sizes) else 0,
        "learned_variance": out != given["in_channels"],
    }
    net = build(PixArtConfig, fields).build()
    load_state(net, _ours(dict(state), net), "diffusers PixArt")
    return net


def pixart_to_diffusers(net: PixArt) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and state dict of the same weights for diffusers; the tensors are views of the net's.

    The null caption, which diffusers has no place for, is left out. ValueError where its class
    cannot hold them: maps that are not square, another MLP ratio than 4, other norms.
    """
    c = net.config
    rows, columns = c.shape[1:]
    if rows != columns or c.mlp_ratio != 4 or c.norms != Norms():
        raise ValueError(
            "PixArtTransformer2DModel holds square maps, mlp_ratio 4 and plain norms only, got "
            f"{c.size}, {c.mlp_ratio} and {c.norms}"
        )
    config = {
        "sample_size": rows,
        "patch_size": c.patch,
        "in_channels": c.channels,
        "out_channels": c.channels * (1 + c.learned_variance),
        "num_layers": c.depth,
        "num_attention_heads": c.heads,
        "attention_head_dim": c.width // c.heads,
        "cross_attention_dim": c.width,
        "caption_channels": c.text_width,
        "interpolation_scale": 1 if c.span is None else rows // c.patch / c.span,
        "use_additional_conditions": c.pixels > 0,
    }
    own = net.state_dict()
    state = {theirs: own[ours] for ours, theirs in _pixart_pairs(net)}
    for ours, names in _pixart_joined(net):
        state.update(zip(names, own[ours].chunk(len(names)), strict=True))
    return config, state


def diffusers_pixart(net: PixArt) -> nn.Module:
    """diffusers' own module with the weights of `net`, in evaluation mode, computing the same."""
    config, state = pixart_to_diffusers(net)
    made: nn.Module = diffusers_class("PixArtTransformer2DModel")(**config)
    load_state(made, state, "genvis PixArt")
    return made.eval()


def _ours(state: dict[str, Tensor], net: PixArt) -> dict[str, Tensor]:
    """Renamed, with q, k and v joined; what has no name of ours keeps its own."""
    joined, pairs = [*_pixart_joined(net)], [*_pixart_pairs(net)]
    wanted = [*(theirs for _, theirs in pairs), *(name for _, names in joined for name in names)]
    if missing := [name for name in wanted if name not in state]:
        raise ValueError(f"diffusers PixArt: {len(missing)} missing ({', '.join(missing[:3])})")
    found = {ours: state.pop(theirs) for ours, theirs in pairs}
    found |= {ours: torch.cat([state.pop(name) for name in names]) for ours, names in joined}
    return {**found, **state}


def _pixart_pairs(net: PixArt) -> Iterator[tuple[str, str]]:
    """(ours, theirs) of every tensor but those that are joined."""
    layers = {**PIXART, **(PIXART_SIZES if net.config.pixels else {})}
    yield from ((a + end, b + end) for a, b in layers.items() for end in ENDINGS)
    yield "final_layer.scale_shift_table", "scale_shift_table"
    for n in range(net.config.depth):
        ours, theirs = f"blocks.{n}.", f"transformer_blocks.{n}."
        yield ours + "scale_shift_table", theirs + "scale_shift_table"
        for a, b in PIXART_BLOCK.items():
            yield from ((ours + a + end, theirs + b + end) for end in ENDINGS)


def _pixart_joined(net: PixArt) -> Iterator[tuple[str, list[str]]]:
    """(ours, theirs in order) of what is one tensor here."""
    for n in range(net.config.depth):
        for end in ENDINGS:
            for ours, theirs in PIXART_JOINED.items():
                parts = "qkv" if ours.endswith("qkv") else "kv"
                names = [f"transformer_blocks.{n}.{theirs.format(x)}{end}" for x in parts]
                yield f"blocks.{n}.{ours}{end}", names


UNET_ARGUMENTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,
    "num_attention_heads": None,
    "cross_attention_dim": 1280,
    "norm_num_groups": 32,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "projection_class_embeddings_input_dim": None,
}
UNET_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu",),
    "addition_embed_type_num_heads": (64,),
    "attention_type": ("default", None),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dropout": (0.0,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1, None),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "norm_eps": (1e-5,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
UNET_IGNORED = ("upcast_attention", "use_linear_projection")
DOWN = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
UP = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}


def unet_from_official(official: Mapping[str, Any], state: Mapping[str, Tensor]) -> LDMUNet:
    """An LDMUNet from the config (the content of `config.json`) and the state dict of a
    `UNet2DConditionModel`.

    ConfigError names an option that ours does not have; ValueError what is missing, extra or of
    another shape.
    """
    known = (*UNET_ARGUMENTS, *UNET_FIXED, *UNET_IGNORED, *IGNORED)
    check_arguments(official, known, "UNet2DConditionModel")
    check_fixed(official, UNET_FIXED, "our UNet")
    given = {**UNET_ARGUMENTS, **official}
    widths = given["block_out_channels"]
    if any(width % widths[0] for width in widths):
        raise ConfigError(f"block_out_channels must be multiples of the first, got {widths}")
    if given["out_channels"] != given["in_channels"]:
        raise ConfigError(
            f"out_channels must be in_channels {given['in_channels']}, got {given['out_channels']}"
        )
    downs, ups = ([*given[f"{side}_block_types"]] for side in ("down", "up"))
    if not set(downs) <= DOWN.keys() or [UP.get(name) for name in ups] != [
        DOWN[name] for name in reversed(downs)
    ]:
        raise ConfigError(
            f"blocks must be {', '.join(DOWN)} and their mirror images {', '.join(UP)}, got "
            f"{downs} and {ups}"
        )
    levels = range(len(widths))
    layers = _by_level(given["transformer_layers_per_block"], levels)
    heads = _by_level(given["num_attention_heads"] or given["attention_head_dim"], levels)
    depths = [n if DOWN[kind] else 0 for n, kind in zip(layers, downs, strict=True)]
    fields = {
        "size": given["sample_size"] or 64,
        "channels": given["in_channels"],
        "width": widths[0],
        "mult": [width // widths[0] for width in widths],
        "depth": given["layers_per_block"],
        "transformers": depths,
        "middle": layers[-1],
        "heads": heads,
        "groups": given["norm_num_groups"],
        "text_width": given["cross_attention_dim"],
        **_added(given),
    }
    net = build(LDMUNetConfig, fields).build()
    linear = {
        name: value.flatten(1) if name.endswith(("proj_in.weight", "proj_out.weight")) else value
        for name, value in state.items()
    }
    load_state(net, linear, "diffusers UNet")
    return net


def unet_to_diffusers(net: LDMUNet) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and state dict of the same weights for diffusers; the tensors are the net's.

    ValueError where its class cannot hold them: scaled skips, no transformer in the middle, a depth
    there other than at the last level, or one condition without the other of SDXL's two.
    """
    c = net.config
    last = c.transformers[-1] or c.middle
    if c.skips != Unscaled() or not c.middle or c.middle != last:
        raise ValueError(
            "UNet2DConditionModel has unscaled skips and in the middle as many transformer blocks "
            f"as at the last level, got {c.skips}, {c.middle} and {c.transformers[-1]}"
        )
    if bool(c.pooled_width) != bool(c.pixels):
        raise ValueError(
            "UNet2DConditionModel reads a pooled text together with the image's size, got "
            f"pooled_width {c.pooled_width} and pixels {c.pixels}"
        )
    down = tuple("CrossAttnDownBlock2D" if n else "DownBlock2D" for n in c.transformers)
    config: dict[str, Any] = {
        "sample_size": c.size,
        "in_channels": c.channels,
        "out_channels": c.channels,
        "block_out_channels": tuple(c.widths),
        "layers_per_block": c.depth,
        "transformer_layers_per_block": (*(n or 1 for n in c.transformers[:-1]), last),
        "attention_head_dim": tuple(c.heads),
        "cross_attention_dim": c.text_width,
        "norm_num_groups": c.groups,
        "down_block_types": down,
        "up_block_types": tuple(name.replace("Down", "Up") for name in reversed(down)),
        "use_linear_projection": True,
    }
    if c.pixels:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": c.pooled_width + 6 * 256,
        }
    return config, dict(net.state_dict())


def _added(given: Mapping[str, Any]) -> dict[str, int]:
    """What is added to the time: nothing, or SDXL's pooled text and size."""
    kind, frequencies = given["addition_embed_type"], given["addition_time_embed_dim"]
    if kind is None:
        return {}
    if kind != "text_time" or frequencies != 256:
        raise ConfigError(
            "addition_embed_type must be None, or 'text_time' with addition_time_embed_dim 256, "
            f"got {kind!r} and {frequencies}"
        )
    return {
        "pooled_width": given["projection_class_embeddings_input_dim"] - 6 * frequencies,
        "pixels": 8,
    }


def _by_level(value: Any, levels: range) -> list[int]:
    return [value for _ in levels] if isinstance(value, int) else [*value]
