"""Data for quantization, drawn along the trajectories of the sampler that will be used.

    rows = calibration(generator, Calibration(rows=512))  # what the network is really called with
    small = quantized(generator, plan, rows)              # plan applied, static ranges found

The same for denoisers, evenly over times and both halves of guidance, and for next-scale networks,
teacher-forced on the scales that they sampled.

Sources: Li et al. 2023, "Q-Diffusion" (data from all steps of the sampler); Yuan et al. 2022,
"PTQ4ViT" (squared gradients as weights).
Letters: B rows, C calls of the network in a trajectory, m of them kept.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from torch import Tensor, nn

from genvis.checkpoint import in_use, open_run
from genvis.compression.layers import find_ranges, seen
from genvis.compression.rows import Call, Rows
from genvis.config import config, dump
from genvis.devices import processes
from genvis.quant.plan import Plan
from genvis.random import HashKeys
from genvis.samplers import SAMPLERS
from genvis.samplers.base import BaseGenerator, SamplerChoice
from genvis.samplers.generate import in_turn
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
    prompts: tuple[str, ...] | None = None  # in turn, for a model that is told in words
    chunk: int = 64  # images at a time

    def __post_init__(self) -> None:
        if min(self.rows, self.calls, self.chunk) < 1:
            raise ValueError(
                "rows, calls and chunk must be at least 1, got "
                f"{self.rows}, {self.calls} and {self.chunk}"
            )

    def things(self, generator: BaseGenerator) -> Cond:
        """What images show in turn. ValueError for what the model does not take."""
        if generator.text is not None and self.prompts is None:
            raise ValueError("calibration.prompts: this model is told in words, so give some")
        return generator.things(self.classes, self.prompts)


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
def calibration(generator: BaseGenerator, config: Calibration) -> Rows:
    """Rows of what the sampler calls the backbone with, on the CPU.

    Image i gives m of its calls, evenly over its trajectory and each time others, so that together
    all calls are there equally often. ValueError if the sampler never calls the generator's
    network.
    """
    conds = config.things(generator)
    recorder = Recorder(generator.backbone)
    sampler = generator.having(recorder).sampler(config.sampler)
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


def cached(generator: BaseGenerator, config: Calibration, folder: str | Path, source: str) -> Rows:
    """`calibration`, kept in a folder: made now if it is not there.

    `source` identifies the weights (`genvis.models.fingerprint`). ValueError if the folder belongs
    to other weights or another config.
    """
    config = replace(config, sampler=generator.choice(config.sampler))
    with processes().main_process_first():
        folder = open_run(folder, {"source": source, **dump(config)})
        if not (folder / FILE).exists():
            with in_use(folder):
                calibration(generator, config).save(folder / FILE)
    return Rows.load(folder / FILE)


def calibrate(net: nn.Module, rows: Rows, *, chunk: int = 64, seed: int = 0) -> None:
    """`layers.find_ranges` of a quantized backbone on all rows."""
    find_ranges(net, rows.calls(chunk, _device(net)), seed=seed)


def observed(
    net: nn.Module, plan: Plan, rows: Rows, *, tokens: int = 4096, chunk: int = 64
) -> Mapping[str, list[Tensor]]:
    """What the layers of a backbone whose rules need data are called with."""
    return seen(net, plan.needing_data(net), tuple(rows.calls(chunk, _device(net))), tokens)


def quantized(generator: G, plan: Plan, rows: Rows, *, tokens: int = 4096, chunk: int = 64) -> G:
    """The generator under a plan, with all that its rules find on data."""
    before = observed(generator.backbone, plan, rows, tokens=tokens, chunk=chunk)
    made = generator.having(plan.apply(generator.backbone, before), plan)
    calibrate(made.backbone, rows, chunk=chunk)
    return made


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device
