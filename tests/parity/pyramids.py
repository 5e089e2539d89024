"""Released next-scale networks as generators, and what they decode step by step."""

from typing import Any

import torch
from golden_case import Case
from torch import Tensor

from genvis.integrations.official import from_official
from genvis.random import HashKeys
from genvis.samplers.decoding import Decoding
from genvis.samplers.guided_scales import ScaleGuidance
from genvis.samplers.next_scale import NextScaleConfig, NextScaleState
from genvis.samplers.scale_generator import ScaleGenerator, ScaleGeneratorConfig
from genvis.types import Cond, Sampler

LOGITS = (1e-4, 1e-4)
TOKENS = (0.0, 0.0)
IMAGE = (1e-4, 0.0)


def generator(case: Case, name: str) -> ScaleGenerator:
    """The network called `name` with the tokenizer, both from the case's state."""
    given: dict[str, Any] = case.spec["config"]
    tokenizer: Any = from_official("var_vqvae", case.tensors("state/vae/"), given["vae"])
    net: Any = from_official("var", case.tensors(f"state/{name}/"), given[name])
    config = ScaleGeneratorConfig(backbone=net.config, tokenizer=tokenizer.config)
    return ScaleGenerator(config, net, tokenizer)


def released(call: dict[str, Any]) -> NextScaleConfig:
    """The arguments of the released sampling functions; 0 turns top_k and top_p off there."""
    top_k = call["top_k"]
    if isinstance(top_k, str):  # "1 at every scale (greedy)"
        top_k = int(top_k.split()[0])
    decoding = Decoding(
        top_k=top_k, top_p=call["top_p"] or 1.0, smooth=call.get("more_smooth", False)
    )
    return NextScaleConfig(guidance=ScaleGuidance(scale=1 + call["cfg"]), decoding=decoding)


def compare_steps(case: Case, sampler: Sampler, label: Tensor) -> list[NextScaleState]:
    """Guided logits and tokens of every scale against the record; the states in between."""
    keys = HashKeys.of(0, range(len(label)))
    state = sampler.init(keys.normal(sampler.noise_shape), Cond(label=label), keys)
    states = [state]
    for k in range(sampler.num_steps):
        state = sampler.look(state)
        assert state.kept is not None
        case.compare(f"cfg_logits_{k}", state.kept, tolerance=LOGITS)
        state = sampler.step(state)
        case.compare(f"idx_{k}", state.tokens[k], tolerance=TOKENS)
        states.append(state)
    case.compare("img", unit(sampler.preview(state)), tolerance=IMAGE)
    return states


def unit(images: Tensor) -> Tensor:
    """From [-1, 1] to [0, 1], as the released functions return them."""
    return (images + 1) / 2


def off(value: float) -> float:
    """A released top_p, of which 0 is off."""
    return value or 1.0


def masked(truncated: Tensor) -> Tensor:
    """Where a code was kept."""
    return (truncated > -torch.inf).to(torch.uint8)
