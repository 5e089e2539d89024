"""Collaborative decoding: a large network drafts the coarse scales, a small one the fine ones.

Source: Chen et al. 2025, "Collaborative Decoding Makes Visual Auto-Regressive Modeling Efficient",
section 3, and released code. Letters: N scales are drafted, of K.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from genvis.config import config
from genvis.random import Keys
from genvis.samplers.base import check_same_text
from genvis.samplers.decoding import Decoding
from genvis.samplers.guided_scales import ScaleGuidance
from genvis.samplers.next_scale import (
    PLAIN,
    UNGUIDED,
    NextScaleConfig,
    NextScaleSampler,
    NextScaleState,
    redrawn,
)
from genvis.samplers.scale_generator import ScaleGenerator
from genvis.types import Cond, Cost


@config
class CollaborativeConfig:
    """The generator that it is used on drafts. Lists in `drafting` and `refining` have a value for
    each of all K scales.
    """

    kind: ClassVar[str] = "scale_generator"
    refiner: str  # a run folder, a model folder or a hub id
    draft_steps: int  # N: 0 is the refiner alone, K the drafter
    guidance: ScaleGuidance = UNGUIDED
    drafting: Decoding = PLAIN
    refining: Decoding = PLAIN
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        if self.draft_steps < 0:
            raise ValueError(f"draft_steps must be at least 0, got {self.draft_steps}")

    @property
    def others(self) -> tuple[str, ...]:
        return (self.refiner,)

    @property
    def guided(self) -> bool:
        return self.guidance.scale != 1

    def build(self, generator: ScaleGenerator) -> "Collaborative":
        refiner = ScaleGenerator.from_pretrained(self.refiner).to(generator.device)
        check_pair(generator, refiner, self.refiner)
        drafting, refining = self._phase(self.drafting), self._phase(self.refining)
        return Collaborative(
            drafting.build(generator),
            refining.build(replace(refiner, tokenizer=generator.tokenizer)),
            self.draft_steps,
        )

    def _phase(self, decoding: Decoding) -> NextScaleConfig:
        return NextScaleConfig(guidance=self.guidance, decoding=decoding, precision=self.precision)


@dataclass(frozen=True)
class Collaborative:
    """A `Sampler` of two. What passes from one to the other are f_hat, the tokens and the inputs
    made of them: the drafter's memory ends where the refiner, in one pass over all scales so far,
    makes its own.
    """

    drafter: NextScaleSampler
    refiner: NextScaleSampler
    draft_steps: int
    preview_looks: ClassVar[bool] = False  # f_hat is there without the network

    def __post_init__(self) -> None:
        if not 0 <= self.draft_steps <= self.num_steps:
            raise ValueError(
                f"draft_steps must be in 0..{self.num_steps}, the number of scales, got "
                f"{self.draft_steps}"
            )

    @property
    def num_steps(self) -> int:
        return self.drafter.num_steps

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return self.drafter.noise_shape

    @property
    def device(self) -> torch.device:
        return self.drafter.device

    @property
    def stochastic(self) -> bool:
        return self._random(0)

    def at(self, k: int) -> NextScaleSampler:
        """Whose scale k is."""
        return self.drafter if k < self.draft_steps else self.refiner

    def init(self, noise: Tensor, cond: Cond, keys: Keys) -> NextScaleState:
        return self.drafter.init(noise, cond, keys)

    def look(self, state: NextScaleState) -> NextScaleState:
        return self.at(state.k).look(state)

    def step(self, state: NextScaleState) -> NextScaleState:
        moved = self.at(state.k).step(state)
        return replace(moved, memory=None) if moved.k == self.draft_steps else moved

    def preview(self, state: NextScaleState) -> Tensor:
        return self.drafter.preview(state)

    def rekey(self, state: NextScaleState, keys: Keys) -> NextScaleState:
        return redrawn(state, keys, self.drafter.ends, self._random(state.k))

    def cost(self, k: int) -> Cost:
        """The refiner's first scale is priced with those below it."""
        return self.at(k).price(0 if k == self.draft_steps else k, k)

    def _random(self, k: int) -> bool:
        return any(self.at(j).decoding.random(j) for j in range(k, self.num_steps))


def check_pair(drafter: ScaleGenerator, refiner: ScaleGenerator, source: str) -> None:
    """ValueError unless a refiner goes on where the drafter ends."""
    for name in ("scales", "codes", "code_width", "num_classes"):
        ours, theirs = (getattr(each.config.backbone, name) for each in (drafter, refiner))
        if ours != theirs:
            raise ValueError(f"refiner {source}: {name} is {theirs}, the drafter's is {ours}")
    if drafter.config.tokenizer != refiner.config.tokenizer:
        raise ValueError(f"refiner {source} has another tokenizer than the drafter")
    check_same_text(drafter, refiner, f"refiner {source}")
