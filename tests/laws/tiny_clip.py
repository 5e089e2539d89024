"""A random CLIP small enough for tests, as a folder that published ones look like."""

import json
from pathlib import Path

import torch

from genvis.checkpoint import save_tensors
from genvis.features.clip_net import CLIPNet, official_config
from genvis.features.clip_tokens import END, LETTERS, START

MERGES = ("c a", "ca t</w>", "d o", "do g</w>")
WORDS = [*LETTERS.values(), *(f"{x}</w>" for x in LETTERS.values())]
WORDS += [*(merge.replace(" ", "") for merge in MERGES), START, END]
SIZE, CONTEXT = 16, 20
OFFICIAL = {
    "text_config": {
        "vocab_size": len(WORDS),
        "max_position_embeddings": CONTEXT,
        "eos_token_id": len(WORDS) - 1,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "vision_config": {
        "image_size": SIZE,
        "patch_size": 4,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "projection_dim": 12,
}


def tiny_net() -> CLIPNet:
    torch.manual_seed(0)
    net = official_config(OFFICIAL).build()
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


def write_words(folder: Path) -> None:
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))


def write_clip(folder: Path) -> Path:
    """config.json, model.safetensors and the tokenizer's two files."""
    (folder / "config.json").write_text(json.dumps(OFFICIAL))
    save_tensors(folder / "model.safetensors", tiny_net().state_dict())
    write_words(folder)
    return folder
