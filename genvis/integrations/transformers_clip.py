"""transformers' own `CLIPModel` at any size, to be trained here; the package must be installed.

Its folder is read by `features/clip.py`, by `CLIPModel.from_pretrained` and `CLIPTokenizer`.
Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
Supervision". Letters: B pairs, S side of the network's input.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from genvis.checkpoint import WEIGHTS, atomic_folder, check_target, save_tensors
from genvis.config import config
from genvis.features.clip_net import Tower
from genvis.features.clip_tokens import END, FILES, START, CLIPTokenizer
from genvis.features.prepare import prepare


@config
class CLIPModelConfig:
    """words: each gets a token of its own, any other is spelled in bytes; size: images are brought
    to this side; context: tokens of the longest text, both ends included.
    """

    words: tuple[str, ...]
    text: Tower
    image: Tower
    size: int = 32
    patch: int = 4
    context: int = 32
    shared: int = 64

    def __post_init__(self) -> None:
        if min(self.patch, self.context, self.shared) < 1 or self.size < self.patch:
            raise ValueError("patch, context and shared must be at least 1, and size hold a patch")
        _ = self.tokenizer  # a ValueError for what is not one word

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        return CLIPTokenizer.of_words(self.words)

    def build(self) -> "TrainableCLIP":
        try:
            import transformers
        except ModuleNotFoundError as error:
            raise ImportError("training a CLIP needs the package transformers") from error
        net = transformers.CLIPModel(transformers.CLIPConfig(**self.official()))
        positions = net.vision_model.embeddings.position_embedding.weight
        # the paper's; transformers' 0.02 drowns in the patches of a narrow tower
        nn.init.normal_(positions, std=self.image.width**-0.5)
        return TrainableCLIP(self, net)

    def official(self) -> dict[str, Any]:
        """The entries of transformers' config.json."""
        ids = self.tokenizer.ids
        tokens = {"bos_token_id": ids[START], "eos_token_id": ids[END], "pad_token_id": ids[END]}
        text = {"vocab_size": len(ids), "max_position_embeddings": self.context, **tokens}
        image = {"image_size": self.size, "patch_size": self.patch}
        return {
            "text_config": {**_tower(self.text), **text},
            "vision_config": {**_tower(self.image), **image},
            "projection_dim": self.shared,
        }


def _tower(tower: Tower) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads,
        "intermediate_size": tower.hidden,
        "hidden_act": tower.activation,
        "layer_norm_eps": tower.eps,
    }


@dataclass(frozen=True)
class TrainableCLIP:
    config: CLIPModelConfig
    net: Any  # a CLIPModel

    def logits(self, net: nn.Module, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] against prompts: cosines times the scale, (B, B)."""
        ids = self.config.tokenizer(prompts, self.config.context).to(images.device)
        seen = net(input_ids=ids, pixel_values=prepare(images, self.config.size))
        return seen.logits_per_image

    def to(self, device: Any) -> Self:
        return replace(self, net=self.net.to(device))

    def save_pretrained(self, folder: str | Path) -> None:
        """config.json, model.safetensors, vocab.json and merges.txt, whole or absent."""
        check_target(folder, beside=FILES)
        with atomic_folder(folder) as new:
            self.net.config.save_pretrained(new)
            save_tensors(new / WEIGHTS, self.net.state_dict(), {"format": "pt"})
            self.config.tokenizer.save(new)
