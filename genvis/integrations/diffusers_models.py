"""Models of diffusers, found and loaded strictly.

diffusers ignores config keys that it does not know, and loads a checkpoint that lacks tensors with
only a warning: here both are errors.
"""

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genvis.checkpoint import read_json
from genvis.config import ConfigError, check_arguments

ENDINGS = (".weight", ".bias")  # of a layer


def diffusers_class(name: str, module: str = "diffusers") -> Any:
    """The class of that name. ImportError if diffusers is not installed or has no such class."""
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} needs the package diffusers") from error
    if found is None:
        raise ImportError(f"the installed diffusers has no {name}")
    return found


def pipeline_parts(folder: str | Path) -> Mapping[str, Any]:
    """What a pipeline's folder holds, by name. ValueError if it is no such folder."""
    if not (Path(folder) / "model_index.json").is_file():
        raise ValueError(f"{folder}: not the folder of a diffusers pipeline")
    return read_json(Path(folder) / "model_index.json")


def load_pipeline(folder: str | Path, dtype: torch.dtype | None = None) -> Any:
    """The pipeline in a folder, without a progress bar; on the CPU, in float32 or `dtype`."""
    pipeline_parts(folder)
    given = {} if dtype is None else {"torch_dtype": dtype}
    kind = diffusers_class("DiffusionPipeline")
    loaded = kind.from_pretrained(str(folder), local_files_only=True, **given)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def make(name: str, arguments: dict[str, Any]) -> nn.Module:
    """A model with fresh weights. ValueError names an argument that its class does not have."""
    kind = diffusers_class(name)
    _check_arguments(kind, arguments, name)
    made: nn.Module = kind(**arguments)
    return made


def load(source: str, kinds: tuple[str, ...], subfolder: str | None = None) -> nn.Module:
    """The model in a folder as `save_pretrained` writes it, or of a hub id; on the CPU, frozen.

    ValueError if it is none of `kinds`, or if a config key or a tensor does not fit.
    """
    where = source if subfolder is None else f"{source}/{subfolder}"
    place: dict[str, Any] = {"local_files_only": Path(source).exists()}
    if subfolder is not None:
        place["subfolder"] = subfolder
    try:
        config = diffusers_class(kinds[0]).load_config(source, **place)
        if config.get("_class_name") not in kinds:
            raise ValueError(
                f"{where}: holds a {config.get('_class_name')}, expected {' or '.join(kinds)}"
            )
        kind = diffusers_class(config["_class_name"])
        _check_arguments(kind, config, where)
        made, report = kind.from_pretrained(source, output_loading_info=True, **place)
    except OSError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{where}: not a model of diffusers: {reason}") from error
    if problems := [f"{what}: {names}" for what, names in report.items() if names]:
        raise ValueError(f"{where}: does not fit {kind.__name__}: {'; '.join(problems)}")
    frozen: nn.Module = made.eval().requires_grad_(False)
    return frozen


def _check_arguments(kind: Any, given: dict[str, Any], where: str) -> None:
    known = inspect.signature(kind.__init__).parameters
    told = [name for name, value in given.items() if name[0] != "_" and value is not None]
    check_arguments(told, known, f"{where}: {kind.__name__}")


def check_fixed(
    official: Mapping[str, Any], fixed: Mapping[str, tuple[Any, ...]], what: str
) -> None:
    """ConfigError for an option that has none of the values that `what` has it at."""
    for name, allowed in fixed.items():
        if name in official and official[name] not in allowed:
            raise ConfigError(f"{name} must be {allowed[0]!r} for {what}, got {official[name]!r}")
