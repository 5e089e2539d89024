"""Published checkpoints: the one door for layouts that are not ours.

Each backbone file translates the constructor arguments and keys of the released class in its own
`from_official(config, state)`; this file finds that function, opens the released file and picks
the weights in it. Training checkpoints of the DiT family (Peebles and Xie 2023, `train.py`) hold
`model`, `ema`, `opt` and `args`; those of VAR (Tian et al. 2024, `trainer.py`) hold the network and
its tokenizer, under `trainer`; those of PixArt (Chen et al. 2023) hold `state_dict` and, where
they have an average, `state_dict_ema`.
"""

import argparse
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genvis.backbones import BACKBONES, SCALE_BACKBONES
from genvis.checkpoint import load_tensors, save_pretrained
from genvis.config import Table
from genvis.samplers.scale_generator import (
    ScaleGenerator,
    ScaleGeneratorConfig,
    check_agreement,
)
from genvis.tokenizers import TOKENIZERS
from genvis.tokenizers.model import PretrainedConfig, TokenizerModel, TokenizerModelConfig

OFFICIAL = Table(
    "published layout",
    {
        "dit": "genvis.backbones.dit:from_official",
        "dit_diffusers": "genvis.integrations.diffusers_dit:from_official",
        "sit": "genvis.backbones.dit:from_official",  # the same layout; see `SiTVelocity`
        "pixart": "genvis.backbones.pixart:from_official",
        "pixart_diffusers": "genvis.integrations.diffusers_text:pixart_from_official",
        "unet_diffusers": "genvis.integrations.diffusers_text:unet_from_official",
        "uvit": "genvis.backbones.uvit:from_official",
        "dimr": "genvis.backbones.dimr:from_official",
        "lego": "genvis.backbones.lego:from_official",
        "zigma": "genvis.backbones.zigma:from_official",
        "var": "genvis.backbones.var:from_official",
        "mvar": "genvis.backbones.mvar:from_official",
        "vitok": "genvis.tokenizers.vitok:from_official",
        "vitok_v2": "genvis.tokenizers.vitok_v2:from_official",
        "var_vqvae": "genvis.tokenizers.multi_scale_vq:from_official",
    },
)

# of VAR's training checkpoints; they hold no averages
IN_TRAINER = {"var": "var_wo_ddp", "mvar": "var_wo_ddp", "var_vqvae": "vae_local"}

NEXT_SCALE = ("var", "mvar")  # generators only together with a tokenizer

log = logging.getLogger(__name__)


def from_official(
    name: str,
    state_dict: Mapping[str, Any],
    official_config: Mapping[str, Any],
    use: str = "ema",
) -> nn.Module:
    """Our net with published weights, in evaluation mode; every tensor must fit.

    `state_dict` is a plain state dict or a training checkpoint, of which `use` (ema or model; VAR's
    and released PixArts have but one) is taken and the rest is named in the log; `official_config`
    holds the arguments of the released class. ValueError names what is missing, extra or of another
    shape.
    """
    translate = OFFICIAL.resolve(name, trust_code=False)
    trainer = state_dict.get("trainer")
    if name in IN_TRAINER and isinstance(trainer, Mapping):
        use = IN_TRAINER[name]
        state, dropped = _part(trainer, use)
    elif "state_dict" in state_dict:
        averaged = use == "ema" and "state_dict_ema" in state_dict
        use = "state_dict_ema" if averaged else "state_dict"
        state, dropped = _part(state_dict, use)
    else:
        state, dropped = select_weights(state_dict, use)
    if dropped:
        log.warning("took %r from a training checkpoint; dropped %s", use, ", ".join(dropped))
    net: nn.Module = translate(official_config, state)
    return net.eval()


def select_weights(
    checkpoint: Mapping[str, Any], use: str = "ema"
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dict in a checkpoint, and the names of the parts that were left out.

    A plain state dict is taken whole; of a training checkpoint, the part called `use`.
    """
    if use not in ("ema", "model"):
        raise ValueError(f"use must be 'ema' or 'model', got {use!r}")
    if checkpoint and all(isinstance(value, Tensor) for value in checkpoint.values()):
        return dict(checkpoint), ()
    return _part(checkpoint, use)


def _part(checkpoint: Mapping[str, Any], use: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    if not isinstance(checkpoint.get(use), Mapping):
        held = ", ".join(map(str, [*checkpoint][:6])) or "nothing"
        raise ValueError(f"the checkpoint has no weights called {use!r}; it holds {held}")
    state = dict(checkpoint[use])
    foreign = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if foreign or not state:
        found = f"{foreign[0]!r} is no tensor" if foreign else "it is empty"
        raise ValueError(f"{use!r} of the checkpoint is not a state dict: {found}")
    return state, tuple(str(key) for key in checkpoint if key != use)


def check_tokenizer(name: str, tokenizer: str | None) -> None:
    """ValueError unless a tokenizer's folder is given to the layouts that need one, alone."""
    if (name in NEXT_SCALE) != (tokenizer is not None):
        rule = "needs" if name in NEXT_SCALE else "takes no"
        raise ValueError(f"{name} {rule} tokenizer: the folder of a converted var_vqvae")


def save_official(net: nn.Module, folder: str | Path, tokenizer: str | None = None) -> None:
    """The model folder of a net with published weights: of a tokenizer, which {name: pretrained,
    path: FOLDER} takes; of a next-scale generator on the tokenizer in that folder; else of a
    backbone alone. ValueError where the tokenizer is for other pyramids than the net.
    """
    config: Any = net.config
    if TOKENIZERS.name_of(config) in TOKENIZERS:
        TokenizerModel(TokenizerModelConfig(tokenizer=config), net).save_pretrained(folder)
    elif SCALE_BACKBONES.name_of(config) in SCALE_BACKBONES:
        chosen = PretrainedConfig(path=str(tokenizer))
        found = chosen.build()
        check_agreement(config, found)
        made = ScaleGeneratorConfig(backbone=config, tokenizer=chosen)
        ScaleGenerator(made, net, found).save_pretrained(folder)
    else:
        save_pretrained(net, folder, BACKBONES)


def load_official_file(path: str | Path) -> dict[str, Any]:
    """The contents of a published `.pt`, `.pth` or `.safetensors` file on the CPU; runs no code."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return dict(load_tensors(path))
    if path.suffix not in (".pt", ".pth"):
        raise ValueError(f"{path}: expected a .pt, .pth or .safetensors file")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # `args` of the DiT family
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: damaged or not only weights: {_first(error)}") from error
    except Exception as error:  # the unpickler meets damage with errors of every kind
        raise ValueError(f"{path}: truncated or not a torch file: {_first(error)}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a mapping of tensors, got {type(content).__name__}")
    return dict(content)


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
