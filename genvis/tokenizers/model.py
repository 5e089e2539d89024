"""A tokenizer as what training trains, saves, and others build on."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from torch import nn

from genvis.checkpoint import load_state, read_folder, save_folder
from genvis.config import config
from genvis.models import MODELS, fingerprint, model_folder, read_model
from genvis.tokenizers import TOKENIZERS
from genvis.types import TokenizerConfig


@config
class TokenizerModelConfig:
    tokenizer: Annotated[TokenizerConfig, TOKENIZERS]

    def build(self) -> "TokenizerModel":
        """With fresh weights."""
        return TokenizerModel(self, self.tokenizer.build())


@dataclass(frozen=True)
class TokenizerModel:
    """`net` is the tokenizer itself: a module with `encode` and `decode`."""

    config: TokenizerModelConfig
    net: nn.Module

    @classmethod
    def from_pretrained(cls, source: str | Path, *, trust_code: bool = False) -> Self:
        """From a model folder, a finished run's folder or a hub id; on the CPU, in eval mode."""
        source = model_folder(source)
        saved = read_folder(source)
        chosen = read_model(saved, source, TokenizerModelConfig, trust_code=trust_code)
        net = chosen.tokenizer.build()
        load_state(net, saved.tensors, str(source))
        return cls(chosen, net.eval().requires_grad_(False))

    def save_pretrained(self, folder: str | Path) -> None:
        save_folder(folder, MODELS.dump(self.config), self.net.state_dict())

    def to(self, device: torch.device | str) -> Self:
        """On another device; this one's network stays where it is."""
        return replace(self, net=copy.deepcopy(self.net).to(device))


@config
class PretrainedConfig:
    """A trained tokenizer inside another model's config: `{name: pretrained, path: runs/vq}`.

    The hash of its weights is found when the config is made and kept in it, so that a model, a run
    or a cache refuses the same folder with other weights.
    """

    path: str  # a model folder, a finished run's folder or a hub id
    sha256: str | None = None  # default: of what is there now

    def __post_init__(self) -> None:
        if self.sha256 is None:
            found = fingerprint(self.path)
            if found == self.path and Path(self.path).exists():
                raise ValueError(f"path {self.path} holds no model")
            object.__setattr__(self, "sha256", found)

    def build(self) -> Any:
        """The tokenizer, frozen. ValueError if its weights are others than those of the config."""
        found = fingerprint(self.path)
        if found == self.path != self.sha256:
            raise ValueError(
                f"{self.path}: no model folder, but this config needs the tokenizer that was in "
                f"it, with weights {str(self.sha256)[:12]}"
            )
        if found != self.sha256:
            raise ValueError(
                f"the tokenizer in {self.path} has changed: its weights are {found[:12]}, this "
                f"config was made for {str(self.sha256)[:12]}"
            )
        return TokenizerModel.from_pretrained(self.path).net
