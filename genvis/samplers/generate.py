"""Whole images from noise, in chunks of a fixed size, so that an image never depends on its
neighbours.

Letters: N images, chunk rows per network call.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from genvis.random import HashKeys, Keys
from genvis.types import Cond, Cost, Sampler, take, to


def run(sampler: Sampler, noise: Tensor, cond: Cond, keys: Keys) -> Tensor:
    """Images (B, 3, H, W) from noise (B, *noise_shape): every step of the sampler, in one batch."""
    state = sampler.init(noise, cond, keys)
    for _ in range(sampler.num_steps):
        state = sampler.step(state)
    return sampler.preview(state)


def trajectory(sampler: Sampler, noise: Tensor, cond: Cond, keys: Keys) -> Iterator[Tensor]:
    """What the images (B, 3, H, W) look like after every step; the last are those of `run`."""
    state = sampler.init(noise, cond, keys)
    for _ in range(sampler.num_steps):
        state = sampler.look(sampler.step(state))
        yield sampler.preview(state)


def price(sampler: Sampler) -> Cost:
    """What one image costs from noise to pixels."""
    return sum((sampler.cost(k) for k in range(sampler.num_steps)), Cost(decodes=1))


@torch.no_grad()
def generate(
    sampler: Sampler, cond: Cond, keys: HashKeys, chunk: int = 64, noise: Tensor | None = None
) -> Tensor:
    """Images (N, 3, H, W) on the CPU for N conditions and N keys; `noise` (N, ...) instead of the
    keys' own.

    Every network call has `chunk` rows, the last one padded: at a fixed chunk an image is the same
    to the last bit whatever it is generated with; across chunk sizes matrix libraries round
    differently.
    """
    n, parts = len(keys), []
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if len(cond) != n or n == 0:
        raise ValueError(
            f"cond and keys must have the same rows, at least one; got {len(cond)} and {n}"
        )
    for start in range(0, n, chunk):
        rows = torch.arange(start, start + chunk).clamp(max=n - 1)  # padded with the last row
        own = take(keys, rows)
        begin = own.normal(sampler.noise_shape) if noise is None else take(noise, rows)
        given = to((begin, take(cond, rows)), sampler.device)
        parts.append(run(sampler, *given, own)[: n - start].cpu())
    return torch.cat(parts)


def labelled(num_classes: int, indices: range) -> Cond:
    """Balanced labels from image numbers: image i has label i mod K. Without classes, no condition
    at all.
    """
    if num_classes == 0:
        return Cond(drop=torch.ones(len(indices), dtype=torch.bool))
    return Cond(label=torch.tensor([i % num_classes for i in indices]))


def of_classes(num_classes: int, classes: Sequence[int] | None) -> Cond:
    """The given classes, or all there are. ValueError for some that are not there."""
    if classes is None:
        return labelled(num_classes, range(num_classes or 1))
    if not all(0 <= label < num_classes for label in classes):
        known = f"0..{num_classes - 1}" if num_classes else "none: this model has no classes"
        raise ValueError(f"classes must be in {known}, got {list(classes)}")
    return Cond(label=torch.tensor(list(classes)))


def shown(things: Cond, count: int) -> Cond:
    """What images 0, ..., count - 1 show, without the features of texts, which may be gigabytes."""
    bare = replace(things, text=None, text_mask=None, pooled=None, negative=None)
    return in_turn(bare, range(count))


def in_turn(things: Cond, rows: range) -> Cond:
    """Conditions (P rows) for images, which have number i mod P."""
    return take(things, torch.tensor([i % len(things) for i in rows]))
