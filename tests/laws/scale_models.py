"""Tiny next-scale generators whose tokens depend on everything, and ways to run them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genvis.backbones.mvar import MVARConfig
from genvis.backbones.var import VARConfig
from genvis.random import HashKeys
from genvis.samplers.generate import labelled
from genvis.samplers.guided_scales import ScaleGuidance
from genvis.samplers.next_scale import NextScaleConfig, NextScaleState
from genvis.samplers.scale_generator import ScaleGenerator, ScaleGeneratorConfig
from genvis.tokenizers import TOKENIZERS
from genvis.tokenizers.model import TokenizerModel, TokenizerModelConfig
from genvis.types import ScaleBackboneConfig

SCALES, CODES, L = (1, 2, 4), 32, 21
TOKENIZER = {
    "name": "multi_scale_vq",
    "nets": {"width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4},
    "quantizer": {"codes": CODES, "width": 4, "scales": [*SCALES]},
}
SIZES = {"scales": SCALES, "codes": CODES, "code_width": 4, "num_classes": 10}
VAR = VARConfig(**SIZES, width=32, depth=2, heads=2)
MVAR = MVARConfig(**SIZES, width=32, depth=2, heads=2, scan_head=16, state=8)
GUIDED = NextScaleConfig(guidance=ScaleGuidance(scale=2.5))


def made(backbone: ScaleBackboneConfig, seed: int = 0) -> ScaleGenerator:
    """All weights random, so that tokens depend on the noise, the label and each other."""
    torch.manual_seed(seed)
    config = ScaleGeneratorConfig(backbone=backbone, tokenizer=TOKENIZERS.build(TOKENIZER))
    generator = config.build()
    for module in (generator.net, generator.tokenizer):
        for name, parameter in module.named_parameters():
            if "A_log" not in name and "dt_bias" not in name:
                torch.nn.init.normal_(parameter, std=0.15)
        module.eval().requires_grad_(False)
    return generator


def start(sampler: Any, rows: int = 3, seed: int = 0) -> NextScaleState:
    keys = HashKeys.of(seed, range(rows))
    return sampler.init(keys.normal(sampler.noise_shape), labelled(10, range(rows)), keys)


def finish(sampler: Any, state: NextScaleState) -> NextScaleState:
    while state.k < sampler.num_steps:
        state = sampler.step(state)
    return state


def whole(state: NextScaleState) -> Tensor:
    return torch.cat(state.tokens, 1)


def saved(generator: ScaleGenerator, folder: Path) -> ScaleGenerator:
    """The same generator with its tokenizer in a folder."""
    config = TokenizerModelConfig(tokenizer=generator.config.tokenizer)
    TokenizerModel(config, generator.tokenizer).save_pretrained(folder)
    tokenizer = TOKENIZERS.build({"name": "pretrained", "path": str(folder)})
    return replace(generator, config=replace(generator.config, tokenizer=tokenizer))
