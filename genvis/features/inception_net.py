"""The FID-Inception network in plain torch, under the names of its published conversions.

Source: Szegedy et al. 2016, "Rethinking the Inception Architecture", as TensorFlow's frozen graph
of 2015-12-05 has it: average pools leave padding out of the count, Mixed_7c pools by maximum, and
there are 1,008 classes. Letters: B images, C channels, h w map size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Sides = int | tuple[int, int]
Spec = tuple[int, Sides] | tuple[int, Sides, int]  # channels, kernel, stride (1 if not given)
Pool = Callable[[Tensor], Tensor]

average: Pool = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
maximum: Pool = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
halve: Pool = partial(F.max_pool2d, kernel_size=3, stride=2)


class FrozenNorm(nn.Module):
    """Batch norm by its stored statistics, in every mode: a metric must not drift."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, fill in {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}.items():
            self.register_buffer(name, torch.full((channels,), float(fill)))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-3
        )


class Unit(nn.Module):
    """Convolution without bias, norm, ReLU."""

    def __init__(self, inputs: int, spec: Spec, padding: Sides = 0) -> None:
        super().__init__()
        outputs, kernel, stride = (*spec, 1)[:3]
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = FrozenNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Branch:
    """A pool or nothing, then units in a row; `fork` ends in 1x3 and 3x1 units side by side."""

    def __init__(self, name: str, *specs: Spec, pool: Pool | None = None, fork: int = 0) -> None:
        self.name, self.specs, self.pool, self.fork = name, specs, pool, fork
        n = len(specs)
        alone = n == 1 and not fork
        self.row = [name] if alone else [f"{name}_{i + 1}" for i in range(n)]
        self.ends = [f"{name}_{n + 1}a", f"{name}_{n + 1}b"] if fork else []


def same(spec: Spec) -> Sides:
    """The padding that keeps a map's size; none where the stride is to halve it."""
    kernel = (spec[1], spec[1]) if isinstance(spec[1], int) else spec[1]
    return 0 if spec[2:] == (2,) else (kernel[0] // 2, kernel[1] // 2)


class Mixed(nn.Module):
    """Branches side by side, concatenated in their order; units of stride 1 keep the map's size."""

    def __init__(self, inputs: int, *wiring: Branch) -> None:
        super().__init__()
        self.wiring = wiring
        for branch in wiring:
            last = inputs
            for name, spec in zip(branch.row, branch.specs, strict=True):
                self.add_module(name, Unit(last, spec, same(spec)))
                last = spec[0]
            for name, kernel in zip(branch.ends, [(1, 3), (3, 1)], strict=False):
                spec = (branch.fork, kernel)
                self.add_module(name, Unit(last, spec, same(spec)))

    def branches(self, x: Tensor) -> list[Tensor]:
        """The maps of each branch, in order."""
        outputs = []
        for branch in self.wiring:
            y = x if branch.pool is None else branch.pool(x)
            for name in branch.row:
                y = self.get_submodule(name)(y)
            outputs += [self.get_submodule(name)(y) for name in branch.ends] or [y]
        return outputs

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.branches(x), 1)


def mixed_5(inputs: int, pooled: int) -> Mixed:
    return Mixed(
        inputs,
        Branch("branch1x1", (64, 1)),
        Branch("branch5x5", (48, 1), (64, 5)),
        Branch("branch3x3dbl", (64, 1), (96, 3), (96, 3)),
        Branch("branch_pool", (pooled, 1), pool=average),
    )


def mixed_6(c: int) -> Mixed:
    row, column = (1, 7), (7, 1)
    return Mixed(
        768,
        Branch("branch1x1", (192, 1)),
        Branch("branch7x7", (c, 1), (c, row), (192, column)),
        Branch("branch7x7dbl", (c, 1), (c, column), (c, row), (c, column), (192, row)),
        Branch("branch_pool", (192, 1), pool=average),
    )


def mixed_7(inputs: int, pool: Pool) -> Mixed:
    return Mixed(
        inputs,
        Branch("branch1x1", (320, 1)),
        Branch("branch3x3", (384, 1), fork=384),
        Branch("branch3x3dbl", (448, 1), (384, 3), fork=384),
        Branch("branch_pool", (192, 1), pool=pool),
    )


@dataclass(frozen=True)
class Activations:
    """What metrics read of one pass. pool (B, 2048) is FID's; spatial (B, 2023) is sFID's;
    logits (B, 1008) without the bias are IS's; blocks: means over the map of pytorch-fid's blocks
    0 to 2, (B, 64), (B, 192), (B, 768).
    """

    pool: Tensor
    spatial: Tensor
    logits: Tensor
    biased_logits: Tensor
    blocks: tuple[Tensor, Tensor, Tensor]


class InceptionNet(nn.Module):
    """The network after resizing and scaling; 472 tensors, all fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, (32, 3, 2))
        self.Conv2d_2a_3x3 = Unit(32, (32, 3))
        self.Conv2d_2b_3x3 = Unit(32, (64, 3), padding=1)
        self.Conv2d_3b_1x1 = Unit(64, (80, 1))
        self.Conv2d_4a_3x3 = Unit(80, (192, 3))
        self.Mixed_5b = mixed_5(192, 32)
        self.Mixed_5c = mixed_5(256, 64)
        self.Mixed_5d = mixed_5(288, 64)
        self.Mixed_6a = Mixed(
            288,
            Branch("branch3x3", (384, 3, 2)),
            Branch("branch3x3dbl", (64, 1), (96, 3), (96, 3, 2)),
            Branch("", pool=halve),
        )
        self.Mixed_6b = mixed_6(128)
        self.Mixed_6c = mixed_6(160)
        self.Mixed_6d = mixed_6(160)
        self.Mixed_6e = mixed_6(192)
        self.Mixed_7a = Mixed(
            768,
            Branch("branch3x3", (192, 1), (320, 3, 2)),
            Branch("branch7x7x3", (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)),
            Branch("", pool=halve),
        )
        self.Mixed_7b = mixed_7(1280, average)
        self.Mixed_7c = mixed_7(2048, maximum)
        self.fc = nn.Linear(2048, 1008)
        self.requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # a quarter faster on a CPU

    def pool(self, x: Tensor) -> Tensor:
        """Features (B, 2048) alone."""
        return self(x).pool

    def forward(self, x: Tensor) -> Activations:
        """Activations for x (B, 3, 299, 299), scaled to about [-1, 1]."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        block0 = halve(x)
        block1 = halve(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(block0)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(block1)))
        parts = self.Mixed_6d.branches(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))
        block2 = self.Mixed_6e(torch.cat(parts, 1))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(block2)))
        pool = F.adaptive_avg_pool2d(x, 1).flatten(1)
        logits = F.linear(pool, self.fc.weight)
        return Activations(
            pool=pool,
            spatial=rearrange(parts[0][:, :7], "b c h w -> b (h w c)"),  # TensorFlow's order
            logits=logits,
            biased_logits=logits + self.fc.bias,
            blocks=(block0.mean((2, 3)), block1.mean((2, 3)), block2.mean((2, 3))),
        )
