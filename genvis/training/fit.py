"""The training loop.

Data order, noise and dropout are functions of (seed, step, rank): killing a run at any moment and
starting it again gives the weights of the uninterrupted run. Devices, sharding of gradients,
precision and trackers are accelerate's.
"""

import json
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor, nn

from genvis.checkpoint import atomic_write, load_tensors, open_run, save_tensors
from genvis.config import dump, write_yaml
from genvis.console import progress
from genvis.devices import cpu_only
from genvis.random import HashKeys
from genvis.random import stream as hashed
from genvis.training.callbacks import Run
from genvis.training.ema import EMA
from genvis.training.journal import Journal
from genvis.training.order import Order, stream
from genvis.training.recipe import Recipe
from genvis.types import to


class NonFiniteLossError(ArithmeticError):
    """Training produced NaN or infinity; the last checkpoint is from before."""


def fit(recipe: Recipe, folder: str | Path) -> Any:
    """Train to the end, resuming what the folder already holds, and return the model with averaged
    weights.

    Writes `recipe.yaml`, `log.jsonl`, `checkpoints/`, what callbacks write, and at the end
    `model/`. Raises ValueError if the folder is not this run's, and `NonFiniteLossError`.
    """
    AcceleratorState._reset_state()  # else a second run in this process keeps the first's precision
    accelerator = Accelerator(
        cpu=cpu_only(),
        mixed_precision="bf16" if recipe.precision == "bf16" else "no",
        gradient_accumulation_steps=recipe.accumulate,
        log_with=recipe.tracker,
        project_dir=str(folder),
    )
    with accelerator.main_process_first():  # the others find the run that the first one opened
        folder = open_run(folder, dump(recipe))
    main = accelerator.is_main_process
    if main:
        atomic_write(folder / "recipe.yaml", write_yaml(dump(recipe)))

    set_seed(recipe.seed)
    model = recipe.model.build().to(accelerator.device)
    data, held_out = recipe.data.build("train"), recipe.data.build("val")
    order = Order(
        len(data),
        recipe.batch,
        recipe.accumulate,
        recipe.seed,
        accelerator.process_index,
        accelerator.num_processes,
    )
    loss_function = recipe.objective.build(model)
    ema = EMA(model.net, recipe.ema)
    net, optimizer = accelerator.prepare(model.net, recipe.optim.build(model.net))
    start = _resume(accelerator, folder, ema)
    journal = Journal(folder, start) if main else None
    if recipe.tracker:
        accelerator.init_trackers("tracker")

    def log(step: int, values: dict[str, float]) -> None:
        if journal:
            journal.write(step, values)
        accelerator.log(values, step=step)

    window: list[Tensor] = []
    last_good, tick = start, time.monotonic()
    batches = stream(data, order, range(start, recipe.steps), recipe.workers)
    net.train()
    bar = progress(range(start, recipe.steps), f"train {folder}", show=main)
    for step in bar:
        torch.manual_seed(hashed(recipe.seed, step, accelerator.process_index))  # dropout
        lr = recipe.optim.lr_at(step, recipe.steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        total = torch.zeros((), device=accelerator.device)
        for _ in range(recipe.accumulate):
            positions, batch = next(batches)
            batch = to(batch, accelerator.device)
            keys = HashKeys.of(recipe.seed, positions, accelerator.device).fold("train")
            with accelerator.accumulate(net), accelerator.autocast():
                loss = loss_function(net, batch, keys).per_sample.mean()
                accelerator.backward(loss)
                norm = _clip(accelerator, net, recipe.optim.clip)
                optimizer.step()
                optimizer.zero_grad()
            total += loss.detach() / recipe.accumulate
        ema.update(accelerator.unwrap_model(net), step + 1)
        window.append(torch.stack([accelerator.reduce(total, "mean"), norm]))

        done = step + 1
        if (
            done % recipe.log_every == 0
            or done % recipe.checkpoint_every == 0
            or done == recipe.steps
        ):
            losses, norms = _finite(window, done, last_good, folder)
            seconds, tick = time.monotonic() - tick, time.monotonic()
            rate = len(window) * recipe.batch / seconds
            log(
                done,
                {
                    "loss": _mean(losses),
                    "grad_norm": _mean(norms),
                    "lr": lr,
                    "images_per_s": round(rate, 1),
                },
            )
            window = []
        if done % recipe.checkpoint_every == 0 or done == recipe.steps:
            _save(accelerator, folder, ema, done, recipe.keep)
            last_good = done
        if main:
            raw = replace(model, net=accelerator.unwrap_model(net))
            run = Run(raw, ema.net, loss_function, held_out, folder, done, recipe.steps, log)
            for callback in recipe.callbacks:
                callback(run)
    accelerator.end_training()
    trained = replace(model, net=ema.net)
    if main:
        trained.save_pretrained(folder / "model")
    accelerator.wait_for_everyone()
    return trained


def _clip(accelerator: Accelerator, net: nn.Module, limit: float | None) -> Tensor:
    """The gradient norm before clipping; a constant while gradients are still being accumulated."""
    if not accelerator.sync_gradients:
        return torch.zeros((), device=accelerator.device)
    return accelerator.clip_grad_norm_(
        net.parameters(), math.inf if limit is None else limit
    ).detach()


def _finite(
    window: list[Tensor], done: int, last_good: int, folder: Path
) -> tuple[list[float], list[float]]:
    """Losses and gradient norms since the last look; raises at the first that is not a number."""
    rows = torch.stack(window).tolist()
    for k, (loss, norm) in enumerate(rows):
        if not (math.isfinite(loss) and math.isfinite(norm)):
            where = (
                f"checkpoint of step {last_good} in {folder / 'checkpoints'}"
                if last_good
                else "nothing yet"
            )
            raise NonFiniteLossError(
                f"loss {loss}, gradient norm {norm} at step {done - len(rows) + k + 1}; "
                f"saved and intact: {where}. "
                "Try a lower optim.lr, optim.clip or precision=fp32"
            )
    return [loss for loss, _ in rows], [norm for _, norm in rows]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _save(accelerator: Accelerator, folder: Path, ema: EMA, step: int, keep: int) -> None:
    """A checkpoint appears under its name only when it is whole; older ones beyond `keep` go."""
    final = folder / "checkpoints" / f"step_{step:07d}"
    partial = final.with_name(f".{final.name}.partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    if accelerator.is_main_process:
        save_tensors(partial / "ema.safetensors", ema.net.state_dict())
        atomic_write(partial / "step.json", json.dumps({"step": step}))
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in _checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def _resume(accelerator: Accelerator, folder: Path, ema: EMA) -> int:
    """Load the newest checkpoint, if there is one; returns the steps it has behind it."""
    found = _checkpoints(folder)
    if not found:
        return 0
    accelerator.load_state(str(found[-1]))
    ema.net.load_state_dict(load_tensors(found[-1] / "ema.safetensors"))
    return int(json.loads((found[-1] / "step.json").read_text())["step"])


def _checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("step_*"))
