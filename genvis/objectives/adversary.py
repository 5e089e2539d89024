"""A second player: a discriminator that tells reconstructions from images, and what both minimise.

Sources: Goodfellow et al. 2014, "Generative Adversarial Nets", section 3 (vanilla, with the loss
that does not saturate); Lim and Ye 2017, "Geometric GAN", eq. 8 (hinge).
Letters: B rows, D(x) logits (B, h, w) of patches, high for real ones.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genvis.config import config
from genvis.nn.discriminator import PatchDiscriminatorConfig
from genvis.objectives import GAMES
from genvis.random import Keys
from genvis.types import Batch, Loss


class Game(Protocol):
    """Two losses of logits, elementwise."""

    def judge(self, real: Tensor, fake: Tensor) -> Tensor: ...
    def fool(self, fake: Tensor) -> Tensor: ...


@config
class Hinge:
    def judge(self, real: Tensor, fake: Tensor) -> Tensor:
        return (F.relu(1 - real) + F.relu(1 + fake)) / 2

    def fool(self, fake: Tensor) -> Tensor:
        return -fake


@config
class Vanilla:
    def judge(self, real: Tensor, fake: Tensor) -> Tensor:
        return (F.softplus(-real) + F.softplus(fake)) / 2

    def fool(self, fake: Tensor) -> Tensor:
        return F.softplus(-fake)


PATCHES = PatchDiscriminatorConfig()


@config
class Adversary:
    """The discriminator trains from the first step; it matters to the other player from `start`
    on, growing to `weight` within `ramp` steps.
    """

    weight: float = 0.05
    game: Annotated[Game, GAMES] = Hinge()
    discriminator: PatchDiscriminatorConfig = PATCHES
    start: int = 0
    ramp: int = 0

    def __post_init__(self) -> None:
        if self.weight < 0 or self.start < 0 or self.ramp < 0:
            raise ValueError("weight, start and ramp must be at least 0")

    def weight_at(self, step: int) -> float:
        """The weight of step 0, 1, ..."""
        if step < self.start:
            return 0.0
        return self.weight * min(1.0, (step - self.start + 1) / max(1, self.ramp))


@dataclass(frozen=True)
class Judgement:
    """The discriminator's loss: the images of a batch against a tokenizer's versions of them."""

    game: Game
    tokenizer: nn.Module

    def __call__(
        self, net: nn.Module, batch: Batch, keys: Keys, level: Tensor | None = None
    ) -> Loss:
        with torch.no_grad():
            made = self.tokenizer(batch.x, keys.fold("bottleneck")).images
        real, fake = net(torch.cat([batch.x, made])).float().chunk(2)
        share = ((real > 0).float() + (fake < 0).float()).flatten(1).mean(1) / 2
        loss = self.game.judge(real, fake).flatten(1).mean(1)
        return Loss(loss, logs={"right": share})


@contextmanager
def frozen(net: nn.Module) -> Iterator[nn.Module]:
    """A network that passes gradients on but collects none."""
    trained = [p for p in net.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield net
    finally:
        for p in trained:
            p.requires_grad_(True)
