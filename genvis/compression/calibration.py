"""Data for quantization, drawn along the trajectories of the sampler that will be used.

    rows = calibration(generator, Calibration(rows=512))  # what the network is really called with
    small = quantized(generator, plan, rows)              # plan applied, static ranges found

The same for denoisers, evenly over times and both halves of guidance, and for next-scale networks,
teacher-forced on the scales that they sampled.

Sources: Li et al. 2023, "Q-Diffusion", section 3.2 (data from all steps of the sampler); Yuan et
al. 2022, "PTQ4ViT" (squared gradients as weights).
Letters: B rows, C calls of the network in a trajectory, m of them kept.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from torch import Tensor, nn

from genvis.checkpoint import in_use, open_run
from genvis.compression.rows import Call, Rows, flat
from genvis.config import config, dump
from genvis.devices import processes
from genvis.quant.activations import StaticInput, observing
from genvis.quant.plan import Plan
from genvis.quant.seen import seeing
from genvis.random import HashKeys
from genvis.samplers import SAMPLERS
from genvis.samplers.base import BaseGenerator, SamplerChoice
from genvis.samplers.generate import in_turn, of_classes
from genvis.types import Cond, take, to

G = TypeVar("G", bound=BaseGenerator)
GOLDEN = (5**0.5 - 1) / 2  # its multiples lie evenly in [0, 1), however many there are
FILE = "rows.safetensors"


@config
class Calibration:
    sampler: Annotated[SamplerChoice, SAMPLERS] | None = None  # None: the generator's own
    rows: int = 512
    calls: int = 4  # that are kept of one image's trajectory; more images are more diverse
    seed: int = 0
    classes: tuple[int, ...] | None = None  # in turn; None: all of them
    chunk: int = 64  # images at a time

    def __post_init__(self) -> None:
        if min(self.rows, self.calls, self.chunk) < 1:
            raise ValueError(
                "rows, calls and chunk must be at least 1, got "
                f"{self.rows}, {self.calls} and {self.chunk}"
            )


class Recorder(nn.Module):
    """A network that keeps what it is called with, in `calls`, as `net(*call)` takes it.

    A next-scale network's memory carries the inputs that it has read; at the last scale they are
    those of one teacher-forced call.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net: Any = net
        self.calls: list[Call] = []

    def forward(self, *call: Any) -> Tensor:
        self.calls.append(call)
        return self.net(*call)

    def extend(self, x: Tensor | None, scale: int, cond: Cond, memory: Any) -> tuple[Tensor, Any]:
        read, own = memory or ((), None)
        logits, own = self.net.extend(x, scale, cond, own)
        return logits, self._after(scale + 1, read if x is None else (*read, x), cond, own)

    def prefill(self, x: Tensor, scales: int, cond: Cond) -> tuple[Tensor, Any]:
        logits, own = self.net.prefill(x, scales, cond)
        return logits, self._after(scales, (x,), cond, own)

    def _after(self, scales: int, read: tuple[Tensor, ...], cond: Cond, own: Any) -> Any:
        if scales == len(self.net.config.scales):
            self.calls.append((torch.cat(read, 1), cond))
        return None if own is None else (read, own)


@torch.no_grad()
def calibration(generator: BaseGenerator, config: Calibration, conds: Cond | None = None) -> Rows:
    """Rows of what the sampler calls the network with, on the CPU.

    conds: P conditions to take in turn instead of the config's classes. Image i gives m of its
    calls, evenly over its trajectory and each time others, so that together all calls are there
    equally often. ValueError if the sampler never calls the generator's network.
    """
    recorder = Recorder(generator.net)
    sampler = replace(generator, net=recorder).sampler(config.sampler)
    if conds is None:
        conds = of_classes(generator.num_classes, config.classes)
    size, start, kept = min(config.chunk, ceil(config.rows / config.calls)), 0, list[Call]()
    while sum(len(call[0]) for call in kept) < config.rows:
        images = range(start, start + size)
        keys = HashKeys.of(config.seed, images).fold("calibration")
        noise, cond = keys.normal(sampler.noise_shape), in_turn(conds, images)
        state = sampler.init(*to((noise, cond), sampler.device), keys)
        for _ in range(sampler.num_steps):
            state = sampler.step(state)
        if not recorder.calls:
            raise ValueError(f"{type(sampler).__name__} never calls the generator's network")
        chosen = picks(images, len(recorder.calls), config)
        kept += [to(take(recorder.calls[k], rows), "cpu") for k, rows in chosen.items()]
        recorder.calls.clear()
        start += size
    return Rows.of(kept)


def picks(images: range, calls: int, config: Calibration) -> dict[int, Tensor]:
    """Which of the images (by their place) give which calls, until there are enough rows."""
    m, places = min(config.calls, calls), dict[int, list[int]]()
    for place, i in enumerate(images):
        for j in range(min(m, config.rows - i * m)):
            shift = i * GOLDEN % 1
            places.setdefault(int((j + shift) * calls / m), []).append(place)
    return {k: torch.tensor(places[k]) for k in sorted(places)}


def cached(
    generator: BaseGenerator,
    config: Calibration,
    folder: str | Path,
    source: str,
    conds: Cond | None = None,
) -> Rows:
    """`calibration`, kept in a folder: made now if it is not there.

    `source` identifies the weights (`genvis.models.fingerprint`). ValueError if the folder belongs
    to other weights, another config or other conditions.
    """
    config = replace(config, sampler=generator.choice(config.sampler))
    given = {} if conds is None else {"conds": _digest(conds)}
    with processes().main_process_first():
        folder = open_run(folder, {"source": source, **given, **dump(config)})
        if not (folder / FILE).exists():
            with in_use(folder):
                calibration(generator, config, conds).save(folder / FILE)
    return Rows.load(folder / FILE)


def calibrate(net: nn.Module, rows: Rows, *, chunk: int = 64, seed: int = 0) -> None:
    """Give the static inputs of a quantized net their ranges; they pass unquantized meanwhile.

    Observers that weigh have the diagonal of J^T J, of the output's error |J dx|^2 to first order:
    the mean of squared gradients of v^T y, where the signs v are random. Gradients of parameters
    are cleared.
    """
    inputs = [m for m in net.modules() if isinstance(m, StaticInput)]
    if not inputs:
        return
    weighs, device = any(m.config.observer.weighs for m in inputs), _device(net)
    with observing(net), torch.set_grad_enabled(weighs):
        done = 0
        for call in rows.calls(chunk, device):
            y = net(*call)
            if weighs:
                keys = HashKeys.of(seed, range(done, done + len(y))).fold("signs")
                signs = (keys.uniform(y.shape[1:]) < 0.5).to(y) * 2 - 1
                (signs * y).sum().backward()
            done += len(y)
    if weighs:
        net.zero_grad(set_to_none=True)


@torch.no_grad()
def observed(
    net: nn.Module, plan: Plan, rows: Rows, *, tokens: int = 4096, chunk: int = 64
) -> Mapping[str, list[Tensor]]:
    """What the layers of `net` whose rules need data are called with: about `tokens` of each."""
    names = plan.needing_data(net)
    calls = list(rows.calls(chunk, _device(net))) if names else []
    with seeing(net, names, calls=len(calls), tokens=tokens) as seen:
        for call in calls:
            net(*call)
    return seen


def quantized(generator: G, plan: Plan, rows: Rows, *, tokens: int = 4096, chunk: int = 64) -> G:
    """The generator under a plan, with all that its rules find on data."""
    seen = observed(generator.net, plan, rows, tokens=tokens, chunk=chunk)
    net = plan.apply(generator.net, seen).eval()
    calibrate(net, rows, chunk=chunk)
    changes = (*generator.config.changes, plan)
    return replace(generator, config=replace(generator.config, changes=changes), net=net)


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


def _digest(conds: Cond) -> str:
    digest = hashlib.sha256()
    for name, leaf in flat((conds,)).items():
        digest.update(f"{name} {tuple(leaf.shape)} {leaf.dtype}".encode())
        digest.update(leaf.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
