"""Checkpoints of a run: `checkpoints/step_N/`, there only when whole. In each, `model/` is a model
folder of the averaged weights: `model_folder` finds it there as in a finished run.
"""

import json
import pickle
import shutil
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError

from genvis.checkpoint import WEIGHTS, atomic_write, load_tensors
from genvis.training.ema import EMA
from genvis.types import Model

DAMAGE = (SafetensorError, RuntimeError, OSError, EOFError, KeyError, pickle.UnpicklingError)


def save(accelerator: Accelerator, folder: Path, averaged: Model, step: int, keep: int) -> None:
    """Called by every process. Older checkpoints beyond `keep` go once the new one is there."""
    final = folder / "checkpoints" / f"step_{step:07d}"
    partial = final.with_name(f".{final.name}.partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    if accelerator.is_main_process:
        averaged.save_pretrained(partial / "model")
        atomic_write(partial / "step.json", json.dumps({"step": step}))
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in _found(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def resume(accelerator: Accelerator, folder: Path, ema: EMA) -> int:
    """Load the newest checkpoint, if there is one; returns the steps it has behind it.

    ValueError if it is damaged.
    """
    found = _found(folder)
    if not found:
        return 0
    newest = found[-1]
    if not (newest / "model").is_dir():
        raise ValueError(f"{newest}: an older version of genvis wrote it; start a new run")
    try:
        accelerator.load_state(str(newest))
        ema.net.load_state_dict(load_tensors(newest / "model" / WEIGHTS))
    except (*DAMAGE, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{newest}: damaged ({reason}); remove this folder to go on from the one before"
        ) from error
    return _step(newest)


def _found(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("step_*"), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))
