"""The training loop.

Data order, augmentation, noise and dropout are functions of (seed, step, rank): killing a run at
any moment and starting it again gives the weights of the uninterrupted run. Devices, data-parallel
processes, precision and trackers are accelerate's.
"""

import importlib
import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import Tensor

from genvis.checkpoint import atomic_write, in_use, load_state, open_run, read_folder
from genvis.config import build, dump, write_yaml
from genvis.console import progress
from genvis.data.captions import check_captions
from genvis.devices import cpu_only
from genvis.models import model_folder
from genvis.random import HashKeys
from genvis.random import stream as hashed
from genvis.training import checkpoints
from genvis.training.callbacks import Run
from genvis.training.ema import EMA
from genvis.training.journal import Journal
from genvis.training.optim import Optim
from genvis.training.order import Order, stream
from genvis.training.recipe import Recipe
from genvis.training.turn import Seat
from genvis.types import Batch, LossFunction, Player, to


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
        # a tokenizer's scale may have no use for a convolution, a step's loss none for a stage
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    rank, world = accelerator.process_index, accelerator.num_processes
    set_seed(recipe.seed)
    model = _begun(recipe).to(accelerator.device)
    data, held_out = recipe.data.build("train"), recipe.data.build("val")
    for part in (data, held_out):
        if hasattr(part, "check"):  # latents are for the tokenizer that made them
            part.check(model)
        check_captions(part, model)
    for callback in recipe.callbacks:
        if hasattr(callback, "check"):
            callback.check(model)
    order = Order(len(data), recipe.batch, recipe.accumulate, recipe.seed, rank, world)
    loss_function = recipe.objective.build(model)
    others = _others(loss_function, recipe)
    for player in (Player(model.net, loss_function), *others.values()):
        _rehearse(player, to(data[[0]], accelerator.device))
    recipe.optim.build(model.net)  # refuses tables that the network does not have

    with accelerator.main_process_first():  # the others find the run that the first one opened
        folder = open_run(folder, dump(recipe), upgrade=lambda old: dump(build(Recipe, old)))
    with in_use(folder) if accelerator.is_main_process else nullcontext():
        ema = EMA(model.net, recipe.ema)
        seats = {"": _seat(accelerator, Player(model.net, loss_function), recipe.optim)}
        for name, player in others.items():
            seats[name] = _seat(accelerator, player, recipe.players[name])
        start = checkpoints.resume(accelerator, folder, ema)
        trained = replace(model, net=ema.net)
        if start < recipe.steps or not (folder / "model").exists():
            steps = range(start, recipe.steps)
            run = Run(model, ema.net, loss_function, held_out, folder, start, recipe.steps)
            batches = stream(data, order, steps, recipe.workers)
            _train(recipe, run, accelerator, seats, ema, batches, steps)
            if accelerator.is_main_process:
                trained.save_pretrained(folder / "model")
        accelerator.wait_for_everyone()
    return trained


def _begun(recipe: Recipe) -> Any:
    """The model with the weights that training starts from.

    Changes of the network, such as quantization, are made to what it is initialised from, unless
    that has the same changes already.
    """
    if recipe.init is None:
        return recipe.model.build()
    saved, changes = read_folder(model_folder(recipe.init)), getattr(recipe.model, "changes", ())
    if not changes or saved.config.get("changes") == dump(recipe.model)["changes"]:
        model = recipe.model.build()
        load_state(model.net, saved.tensors, recipe.init)
        return model
    plain: Any = recipe.model
    model = replace(plain, changes=()).build()
    load_state(model.net, saved.tensors, recipe.init)
    return model.changed(*changes)


def _others(loss_function: LossFunction, recipe: Recipe) -> dict[str, Player]:
    """The players beside the model; ValueError unless the recipe has an optimizer for each."""
    players = dict(getattr(loss_function, "players", {}))
    if players.keys() != recipe.players.keys():
        wanted, given = (", ".join(sorted(names)) or "none" for names in (players, recipe.players))
        raise ValueError(
            f"players must give an optimizer to each of the objective's: {wanted}; got {given}"
        )
    return players


def _seat(accelerator: Accelerator, player: Player, optim: Optim) -> Seat:
    net, optimizer = accelerator.prepare(player.net, optim.build(player.net))
    return Seat(net, player.loss, optimizer, optim)


def _rehearse(player: Player, batch: Batch) -> None:
    """One example through the network and the loss, so that misfits show before any work."""
    keys = HashKeys.of(0, [0], next(player.net.parameters()).device)
    with torch.no_grad():
        player.net.eval()
        player.loss(player.net, batch, keys)
        player.net.train()


def _train(
    recipe: Recipe,
    run: Run,
    accelerator: Accelerator,
    seats: Mapping[str, Seat],
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

    # (players, 2): loss and gradient norm, of the steps since the last log line
    window: list[Tensor] = []
    last_good, tick = steps.start, time.monotonic()
    net = seats[""].net
    for seat in seats.values():
        seat.net.train()
    for step in progress(steps, f"train {run.folder}", show=main):
        torch.manual_seed(hashed(recipe.seed, step, accelerator.process_index))  # dropout
        given = [next(batches) for _ in range(recipe.accumulate)]
        micro = [
            (
                to(batch, accelerator.device),
                HashKeys.of(recipe.seed, positions, accelerator.device).fold("train"),
            )
            for positions, batch in given
        ]
        learning = HashKeys.of(recipe.seed, [step], accelerator.device).fold("learn")
        moved = [
            seat.turn(accelerator, micro, step, recipe.steps, learning) for seat in seats.values()
        ]
        ema.update(accelerator.unwrap_model(net), step + 1)
        window.append(torch.stack(moved))

        now = replace(run, step=step + 1, log=log)
        saving = now.due(recipe.checkpoint_every)
        calling = [callback for callback in recipe.callbacks if now.due(callback.every)]
        if saving or calling or now.due(recipe.log_every):
            means = _finite(window, now, last_good)
        if saving or now.due(recipe.log_every):
            seconds, tick = time.monotonic() - tick, time.monotonic()
            speed = {"images_per_s": round(len(window) * recipe.batch / seconds, 1)}
            values: dict[str, float] = {}
            for name, (loss, norm) in zip(seats, means, strict=True):
                prefix = f"{name}_" if name else ""
                values |= {f"{prefix}loss": loss, f"{prefix}grad_norm": norm}
            log(now.step, {**values, "lr": recipe.optim.lr_at(step, recipe.steps), **speed})
            window = []
        if main:
            for callback in calling:
                callback(replace(now, model=replace(run.model, net=accelerator.unwrap_model(net))))
        if saving:  # last, so that what a resumed run does not repeat is already written
            checkpoints.save(accelerator, run.folder, run.averaged, now.step, recipe.keep)
            last_good = now.step
    for tracker in accelerator.trackers:  # accelerator.end_training would also part the processes
        tracker.finish()


def _finite(window: list[Tensor], run: Run, last_good: int) -> list[list[float]]:
    """Mean loss and gradient norm of each player over the window; raises at the first step that has
    one that is not a number.
    """
    rows = torch.stack(window)  # (steps, players, 2)
    for k, players in enumerate(rows.tolist()):
        for loss, norm in players:
            if not (math.isfinite(loss) and math.isfinite(norm)):
                kept = f"the checkpoint of step {last_good}" if last_good else "nothing yet"
                raise NonFiniteLossError(
                    f"loss {loss}, gradient norm {norm} at step {run.step - len(rows) + k + 1}; "
                    f"saved and intact in {run.folder}: {kept}. Try a lower optim.lr or "
                    "precision=fp32"
                )
    means: list[list[float]] = rows.double().mean(0).tolist()
    return means
