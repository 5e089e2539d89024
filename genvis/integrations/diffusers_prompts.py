"""Prompts as a pipeline of diffusers encodes them, once each, and how its call is told of them.

Letters: B rows, L text tokens, D and P widths.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from genvis.integrations.diffusers_networks import kind_of, network_name
from genvis.types import Cond, join, to

LEAVES = {  # of Cond: text (B, L, D), text_mask (B, L), pooled (B, P)
    "text": "prompt_embeds",
    "text_mask": "prompt_attention_mask",
    "pooled": "pooled_prompt_embeds",
}
POOLED = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)
MASKED = (
    "prompt_embeds",
    "prompt_attention_mask",
    "negative_prompt_embeds",
    "negative_prompt_attention_mask",
)
ENCODED = {  # what `encode_prompt` returns, in this order, by the class of the network
    "UNet2DConditionModel": POOLED,  # Stable Diffusion has the first two only
    "SD3Transformer2DModel": POOLED,
    "FluxTransformer2DModel": ("prompt_embeds", "pooled_prompt_embeds"),
    "PixArtTransformer2DModel": MASKED,
    "SanaTransformer2DModel": MASKED,
}


def conditions(
    pipeline: Any,
    prompts: Sequence[str],
    negative: str | None = None,
    call: Mapping[str, Any] | None = None,
) -> Cond:
    """What a search needs of prompts, on the CPU: every one encoded once, by the pipeline's own
    encoders.

    negative: the prompt to steer away from, in all rows; None is the pipeline's own, if it has one.
    call: arguments of the pipeline's call, of which its encoders may want some. A pipeline that is
    not in `ENCODED` encodes by itself, whenever it is called: its rows are words alone.
    """
    if not prompts:
        raise ValueError("prompts must be at least one")
    names = ENCODED.get(kind_of(getattr(pipeline, network_name(pipeline))))
    if names is None:
        other = None if negative is None else Cond(prompts=(negative,) * len(prompts))
        return Cond(prompts=tuple(prompts), negative=other)
    once = {text: _encoded(pipeline, names, text, negative, call or {}) for text in set(prompts)}
    return to(join([once[text] for text in prompts]), "cpu")


def arguments(pipeline: Any, cond: Cond) -> dict[str, Any]:
    """The conditions as arguments of the pipeline's call."""
    known = inspect.signature(pipeline.__call__).parameters
    given: dict[str, Any] = {"batch_size": len(cond)} if "batch_size" in known else {}
    if cond.text is not None:
        unsaid = {name: None for name in ("prompt", "negative_prompt") if name in known}
        return given | unsaid | _leaves(cond) | _leaves(cond.negative, "negative_")
    if cond.label is not None:
        return given | {"class_labels": cond.label.tolist()}
    if cond.prompts is not None:
        given["prompt"] = list(cond.prompts)
    if cond.negative is not None and cond.negative.prompts is not None:
        given["negative_prompt"] = list(cond.negative.prompts)
    return given


def _leaves(cond: Cond | None, prefix: str = "") -> dict[str, Any]:
    found = {} if cond is None else {prefix + name: getattr(cond, k) for k, name in LEAVES.items()}
    return {name: leaf for name, leaf in found.items() if leaf is not None}


@torch.no_grad()
def _encoded(
    pipeline: Any,
    names: Sequence[str],
    prompt: str,
    negative: str | None,
    call: Mapping[str, Any],
) -> Cond:
    """One row, told as the pipeline's own call tells it."""
    asked = inspect.signature(pipeline.encode_prompt).parameters
    defaults = {
        name: given.default
        for name, given in inspect.signature(pipeline.__call__).parameters.items()
    }
    fixed = {"device": pipeline._execution_device, "do_classifier_free_guidance": True}
    told = {name: v for name, v in {**defaults, **call, **fixed}.items() if name in asked}
    together = "negative_prompt" in asked
    if together and negative is not None:
        told["negative_prompt"] = [negative]
    found = dict(zip(names, pipeline.encode_prompt(**told | {"prompt": [prompt]}), strict=False))
    if not together and negative is not None:
        again = pipeline.encode_prompt(**told | {"prompt": [negative]})
        found |= {f"negative_{name}": leaf for name, leaf in zip(names, again, strict=False)}
    words = (negative,) if negative is not None else None
    against = _cond(found, words, "negative_") if "negative_prompt_embeds" in found else None
    return _cond(found, (prompt,), negative=against)


def _cond(
    found: dict[str, Any],
    prompts: tuple[str, ...] | None,
    prefix: str = "",
    negative: Cond | None = None,
) -> Cond:
    leaves = {ours: found.get(prefix + theirs) for ours, theirs in LEAVES.items()}
    mask = leaves.pop("text_mask")
    mask = None if mask is None else mask.bool()
    return Cond(prompts=prompts, text_mask=mask, negative=negative, **leaves)
