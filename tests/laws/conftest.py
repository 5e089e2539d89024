"""A tiny generator whose weights are all random, so that its images depend on noise and label."""

import pytest
import torch

from genvis.config import build
from genvis.samplers.generator import Generator, GeneratorConfig

GENERATOR = {
    "backbone": {
        "name": "dit", "size": 8, "channels": 1, "num_classes": 10,
        "width": 32, "depth": 2, "heads": 4,
    },
    "process": {"name": "linear"},
    "prediction": {"name": "velocity"},
    "tokenizer": {"name": "pixels", "channels": 1},
    "sampler": {"steps": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    made = build(GeneratorConfig, GENERATOR).build()
    for parameter in made.net.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    return made
