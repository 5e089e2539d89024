"""DiT weights in the layout of diffusers' `DiTTransformer2DModel`, in and out.

The names differ, q, k and v are apart, positions are not stored, and every block holds a copy of
the embedders of time and label. Renaming is exact; what diffusers computes with the same weights
differs from the released DiT (Peebles and Xie 2023) in three things that no file records:

- its sinusoids have the frequencies 10000^(-k/127) instead of 10000^(-k/128). Weights converted
  from the released ones, as on the hub, want 128, which is ours; weights that were trained inside
  diffusers saw 127: run those as they are (`diffusers_backbone`) instead of converting them;
- `norm_eps` reaches only the second norm of a block and is 1e-5 by default, also in the configs of
  converted weights, which were trained with 1e-6. Both are read, and 1e-6 is written;
- in train mode every block drops labels by itself.

Letters: D width, K classes, N number of a block.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from genvis.backbones.dit import DiT, DiTConfig
from genvis.checkpoint import load_state
from genvis.config import ConfigError, build, check_arguments
from genvis.integrations.diffusers_models import ENDINGS, check_fixed, diffusers_class
from genvis.nn.norms import Norms

EMBEDDERS = {  # ours: theirs, in the norm1.emb of every block
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}
BLOCK = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
ENDS = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
SIZES = {
    "sample_size": 32,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "num_embeds_ada_norm": 1000,
    "dropout": 0.0,
}
FIXED: dict[str, tuple[Any, ...]] = {  # what a DiT must have, and keys of the class that once was
    "_class_name": ("DiTTransformer2DModel", "Transformer2DModel"),
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "norm_type": ("ada_norm_zero",),
    "norm_elementwise_affine": (False,),
    "norm_eps": (1e-6, 1e-5),
    "upcast_attention": (False, None),
    "cross_attention_dim": (None,),
    "double_self_attention": (False, None),
    "num_vector_embeds": (None,),
    "only_cross_attention": (False, None),
    "use_linear_projection": (False, None),
}
IGNORED = ("_diffusers_version", "_name_or_path", "norm_num_groups")


def from_official(official: Mapping[str, Any], state: Mapping[str, Tensor]) -> DiT:
    """A DiT from diffusers' config (the content of `config.json`) and state dict.

    ConfigError names an option that our DiT does not have; ValueError what is missing, extra, of
    another shape, or a copy of an embedder that differs from the first block's.
    """
    check_arguments(official, (*SIZES, *FIXED, *IGNORED), "DiTTransformer2DModel")
    check_fixed(official, FIXED, "a DiT")
    given: dict[str, Any] = {**SIZES, **official}
    out = given["out_channels"] or given["in_channels"]
    if out not in (given["in_channels"], 2 * given["in_channels"]):
        raise ConfigError(f"out_channels must be in_channels or twice that, got {out}")
    net = build(
        DiTConfig,
        {
            "size": given["sample_size"],
            "patch": given["patch_size"],
            "channels": given["in_channels"],
            "width": given["num_attention_heads"] * given["attention_head_dim"],
            "depth": given["num_layers"],
            "heads": given["num_attention_heads"],
            "num_classes": given["num_embeds_ada_norm"],
            "dropout": given["dropout"],
            "learned_variance": out != given["in_channels"],
        },
    ).build()
    load_state(net, {**_ours(dict(state), net), "pos_embed": net.pos_embed}, "diffusers DiT")
    return net


def to_diffusers(net: DiT) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and state dict of the same weights for diffusers; the tensors are views of the net's.

    ValueError where diffusers' class cannot hold them: maps that are not square, another MLP ratio
    than 4, no row for "no label", other norms.
    """
    c = net.config
    rows, columns = c.shape[1:]
    if rows != columns or c.mlp_ratio != 4 or not c.null_class or c.norms != Norms():
        raise ValueError(
            "DiTTransformer2DModel holds square maps, mlp_ratio 4, a null class and plain norms "
            f"only, got {c.size}, {c.mlp_ratio}, {c.null_class} and {c.norms}"
        )
    config = {
        "sample_size": rows,
        "patch_size": c.patch,
        "in_channels": c.channels,
        "out_channels": c.channels * (1 + c.learned_variance),
        "num_layers": c.depth,
        "num_attention_heads": c.heads,
        "attention_head_dim": c.width // c.heads,
        "num_embeds_ada_norm": c.num_classes,
        "dropout": c.dropout,
        "norm_eps": 1e-6,
    }
    own, state = net.state_dict(), {}
    for ours, theirs in _pairs(c.depth):
        state.update({theirs + end: own[ours + end] for end in ENDINGS if ours + end in own})
    for n in range(c.depth):
        for end in ENDINGS:
            parts = own[f"blocks.{n}.attn.qkv{end}"].chunk(3)
            state.update(zip(_apart(n, end), parts, strict=True))
    return config, state


def diffusers_dit(net: DiT) -> nn.Module:
    """diffusers' own module with the weights of `net`, in evaluation mode, computing the same.

    The frequencies of its sinusoids are set right, and its label dropping is off. Its
    `save_pretrained` writes a folder that every version reads, but with the frequencies of theirs.
    """
    config, state = to_diffusers(net)
    made = diffusers_class("DiTTransformer2DModel")(**config)
    load_state(made, state, "genvis DiT")
    return faithful(made, 0).eval()


def faithful(dit: Any, downscale_freq_shift: int | None = None) -> Any:
    """diffusers' DiT without label dropping; with other sinusoids (0: the released ones) if set."""
    for block in dit.transformer_blocks:
        block.norm1.emb.class_embedder.dropout_prob = 0.0
        if downscale_freq_shift is not None:
            block.norm1.emb.time_proj.downscale_freq_shift = downscale_freq_shift
    return dit


def _ours(state: dict[str, Tensor], net: DiT) -> dict[str, Tensor]:
    """Renamed, with q, k and v joined; what has no name of ours keeps its own."""
    found: dict[str, Tensor] = {}
    own, depth = net.state_dict(), net.config.depth
    joined = {f"blocks.{n}.attn.qkv{end}": _apart(n, end) for n in range(depth) for end in ENDINGS}
    copies = [(a + end, b + end) for a, b in _pairs(depth) for end in ENDINGS if a + end in own]
    wanted = [
        *(theirs for _, theirs in copies),
        *(name for three in joined.values() for name in three),
    ]
    if missing := [name for name in wanted if name not in state]:
        raise ValueError(f"diffusers DiT: {len(missing)} missing ({', '.join(missing[:3])})")
    for ours, theirs in copies:
        value = state.pop(theirs)
        if not torch.equal(found.setdefault(ours, value), value):
            raise ValueError(f"diffusers DiT: {theirs} differs from the copy in the first block")
    found.update({ours: torch.cat([state.pop(k) for k in names]) for ours, names in joined.items()})
    return {**found, **state}


def _pairs(depth: int) -> Iterator[tuple[str, str]]:
    """(ours, theirs) of every layer but q, k and v; the embedders once for every block."""
    yield from ENDS.items()
    for n in range(depth):
        theirs = f"transformer_blocks.{n}."
        yield from ((ours, f"{theirs}norm1.emb.{name}") for ours, name in EMBEDDERS.items())
        yield from ((f"blocks.{n}.{ours}", theirs + name) for ours, name in BLOCK.items())


def _apart(n: int, end: str) -> list[str]:
    return [f"transformer_blocks.{n}.attn1.to_{x}{end}" for x in "qkv"]
