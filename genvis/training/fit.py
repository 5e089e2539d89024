"""The training loop.

Data order, noise and dropout are functions of (seed, step, rank): killing a run at any moment and
starting it again gives the weights of the uninterrupted run. Devices, data-parallel processes,
precision and trackers are accelerate's.
"""

import importlib
import math
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor, nn

from genvis.checkpoint import atomic_write, in_use, open_run
from genvis.config import build, dump, write_yaml
from genvis.console import progress
from genvis.devices import cpu_only
from genvis.random import HashKeys
from genvis.random import stream as hashed
from genvis.training import checkpoints
from genvis.training.callbacks import Run
from genvis.training.ema import EMA
from genvis.training.journal import Journal
from genvis.training.order import Order, stream
from genvis.training.recipe import Recipe
from genvis.types import Batch, LossFunction, to


class NonFiniteLossError(ArithmeticError):
    """Training produced NaN or infinity; the last checkpoint is from before."""


def fit(recipe: Recipe, folder: str | Path) -> Any:
    """Train to the end, resuming what the folder already holds, and return the model with averaged
    weights. A finished run is only read.

    Writes `recipe.yaml`, `log.jsonl`, `checkpoints/`, what callbacks write, and at the end
    `model/`. Raises `NonFiniteLossError`, and ValueError: if parts of the recipe do not fit each
    other, before the folder is touched; if the folder is not this run's, or another process's.
    """
    if recipe.tracker:
        importlib.import_module(recipe.tracker)  # accelerate would go on without it, silently
    AcceleratorState._reset_state()  # else a second run in this process keeps the first's precision
    accelerator = Accelerator(
        cpu=cpu_only(),
        mixed_precision="bf16" if recipe.precision == "bf16" else "no",
        gradient_accumulation_steps=recipe.accumulate,
        log_with=recipe.tracker,
        project_dir=str(folder),
    )
    rank, world = accelerator.process_index, accelerator.num_processes
    set_seed(recipe.seed)
    model = recipe.model.build().to(accelerator.device)
    data, held_out = recipe.data.build("train"), recipe.data.build("val")
    order = Order(len(data), recipe.batch, recipe.accumulate, recipe.seed, rank, world)
    loss_function = recipe.objective.build(model)
    _rehearse(model.net, loss_function, to(data[[0]], accelerator.device))

    with accelerator.main_process_first():  # the others find the run that the first one opened
        folder = open_run(folder, dump(recipe), upgrade=lambda old: dump(build(Recipe, old)))
    with in_use(folder) if accelerator.is_main_process else nullcontext():
        ema = EMA(model.net, recipe.ema)
        net, optimizer = accelerator.prepare(model.net, recipe.optim.build(model.net))
        start = checkpoints.resume(accelerator, folder, ema)
        trained = replace(model, net=ema.net)
        if start < recipe.steps or not (folder / "model").exists():
            steps = range(start, recipe.steps)
            run = Run(model, ema.net, loss_function, held_out, folder, start, recipe.steps)
            batches = stream(data, order, steps, recipe.workers)
            _train(recipe, run, accelerator, net, optimizer, ema, batches, steps)
            if accelerator.is_main_process:
                trained.save_pretrained(folder / "model")
        accelerator.wait_for_everyone()
    return trained


def _rehearse(net: nn.Module, loss_function: LossFunction, batch: Batch) -> None:
    """One example through the network and the loss, so that misfits show before any work."""
    keys = HashKeys.of(0, [0], next(net.parameters()).device)
    with torch.no_grad():
        net.eval()
        loss_function(net, batch, keys)
        net.train()


def _train(
    recipe: Recipe,
    run: Run,
    accelerator: Accelerator,
    net: nn.Module,
    optimizer: Any,
    ema: EMA,
    batches: Any,
    steps: range,
) -> None:
    main = accelerator.is_main_process
    journal = Journal(run.folder, steps.start) if main else None
    if main:
        atomic_write(run.folder / "recipe.yaml", write_yaml(dump(recipe)))
    if recipe.tracker:
        accelerator.init_trackers("tracker")

    def log(step: int, values: dict[str, float]) -> None:
        if journal:
            journal.write(step, values)
        accelerator.log(values, step=step)

    window: list[Tensor] = []  # (loss, gradient norm) of the steps since the last log line
    last_good, tick = steps.start, time.monotonic()
    net.train()
    for step in progress(steps, f"train {run.folder}", show=main):
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
                loss = run.loss(net, batch, keys).per_sample.mean()
                accelerator.backward(loss)
                norm = _clip(accelerator, net, recipe.optim.clip)
                optimizer.step()
                optimizer.zero_grad()
            total += loss.detach() / recipe.accumulate
        ema.update(accelerator.unwrap_model(net), step + 1)
        window.append(torch.stack([accelerator.reduce(total, "mean"), norm]))

        now = replace(run, step=step + 1, log=log)
        saving = now.due(recipe.checkpoint_every)
        calling = [callback for callback in recipe.callbacks if now.due(callback.every)]
        if saving or calling or now.due(recipe.log_every):
            losses, norms = _finite(window, now, last_good)
        if saving or now.due(recipe.log_every):
            seconds, tick = time.monotonic() - tick, time.monotonic()
            speed = {"images_per_s": round(len(window) * recipe.batch / seconds, 1)}
            log(now.step, {"loss": _mean(losses), "grad_norm": _mean(norms), "lr": lr, **speed})
            window = []
        if main:
            for callback in calling:
                callback(replace(now, model=replace(run.model, net=accelerator.unwrap_model(net))))
        if saving:  # last, so that what a resumed run does not repeat is already written
            checkpoints.save(accelerator, run.folder, ema, now.step, recipe.keep)
            last_good = now.step
    accelerator.end_training()


def _clip(accelerator: Accelerator, net: nn.Module, limit: float | None) -> Tensor:
    """The gradient norm before clipping; a constant while gradients are still being accumulated."""
    if not accelerator.sync_gradients:
        return torch.zeros((), device=accelerator.device)
    most = math.inf if limit is None else limit
    return accelerator.clip_grad_norm_(net.parameters(), most).detach()


def _finite(window: list[Tensor], run: Run, last_good: int) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of the window; raises at the first that is not a number."""
    rows = torch.stack(window).tolist()
    for k, (loss, norm) in enumerate(rows):
        if not (math.isfinite(loss) and math.isfinite(norm)):
            kept = f"the checkpoint of step {last_good}" if last_good else "nothing yet"
            raise NonFiniteLossError(
                f"loss {loss}, gradient norm {norm} at step {run.step - len(rows) + k + 1}; saved "
                f"and intact in {run.folder}: {kept}. Try a lower optim.lr or precision=fp32"
            )
    return [loss for loss, _ in rows], [norm for _, norm in rows]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
