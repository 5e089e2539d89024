"""What several scripts are run on."""

from pathlib import Path

import pytest
import torch

from genvis.config import build
from genvis.samplers.generator import GeneratorConfig

GENERATOR = {
    "backbone": {"name": "dit", "size": 8, "channels": 1, "num_classes": 10, "width": 16,
                 "depth": 1, "heads": 2},
    "process": {"name": "linear"},
    "prediction": {"name": "velocity"},
    "tokenizer": {"name": "pixels", "channels": 1},
    "sampler": {"steps": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny DiT of digits; random weights give images that differ."""
    torch.manual_seed(0)
    made = build(GeneratorConfig, GENERATOR).build()
    for parameter in made.net.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    folder = tmp_path_factory.mktemp("model") / "model"
    made.save_pretrained(folder)
    return folder
