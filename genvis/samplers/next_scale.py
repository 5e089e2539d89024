"""Sampling token pyramids from coarse to fine, driven by noise.

Source: Tian et al. 2024, "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale
Prediction", section 3.2. Every token has one standard normal; its place in the distribution
function chooses the code, so an image is a function of (weights, noise, cond, keys) here as well.
Letters: B rows, K scales of n_k = p_k^2 tokens, L all of them, C code width, V codes.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genvis.config import config
from genvis.random import Keys
from genvis.samplers.base import BaseGenerator
from genvis.samplers.decoding import Decoding, place, soften
from genvis.samplers.guided_scales import GuidedScales, ScaleGuidance
from genvis.types import Cond, Cost, ScaleBackbone, ScaleTokenizer

UNGUIDED = ScaleGuidance()
PLAIN = Decoding()


@config
class NextScaleConfig:
    """How to sample scale by scale."""

    kind: ClassVar[str] = "scale_generator"
    guidance: ScaleGuidance = UNGUIDED
    decoding: Decoding = PLAIN
    precision: Literal["fp32", "bf16"] = "fp32"  # that the network computes in

    @property
    def guided(self) -> bool:
        return self.guidance.scale != 1

    def build(self, generator: BaseGenerator) -> "NextScaleSampler":
        tokenizer: ScaleTokenizer = generator.tokenizer
        net: Any = generator.net
        if self.guided:
            net = GuidedScales.of(net, tokenizer.scales, self.guidance, generator.device)
        self.decoding.check(len(tokenizer.scales))
        return NextScaleSampler(
            net=net,
            tokenizer=tokenizer,
            decoding=self.decoding,
            device=generator.device,
            passes=2 if self.guided else 1,
            autocast=self.precision == "bf16",
        )


@dataclass(frozen=True)
class NextScaleState:
    """noise (B, L); f_hat (B, C, h, w), float32, the sum of scales 0, ..., k - 1; their tokens,
    (B, n_j) each; inputs (B, n_j, C) of scales 1, ..., k. Rows share the clock k.

    memory: what the network carries on, None where it must read the inputs again; kept: the
    logits (B, n_k, V) of scale k, if `look` made them.
    """

    noise: Tensor
    cond: Cond
    keys: Keys
    k: int
    f_hat: Tensor
    tokens: tuple[Tensor, ...] = ()
    inputs: tuple[Tensor, ...] = ()
    memory: Any = None
    kept: Tensor | None = None


@dataclass(frozen=True)
class NextScaleSampler:
    """A step is a scale. passes: of the network a scale, 2 with guidance."""

    net: ScaleBackbone
    tokenizer: ScaleTokenizer
    decoding: Decoding
    device: torch.device
    passes: int = 1
    autocast: bool = False
    preview_looks: ClassVar[bool] = False  # f_hat is there without the network

    @property
    def num_steps(self) -> int:
        return len(self.tokenizer.scales)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (self.ends[-1],)

    @property
    def stochastic(self) -> bool:
        return any(map(self.decoding.random, range(self.num_steps)))

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """How many tokens the first 0, 1, ..., K scales have."""
        return (0, *accumulate(p * p for p in self.tokenizer.scales))

    def init(self, noise: Tensor, cond: Cond, keys: Keys) -> NextScaleState:
        """The state before the first scale: noise (B, L) standard normal."""
        if tuple(noise.shape[1:]) != self.noise_shape:
            raise ValueError(f"noise must be (B, {self.ends[-1]}), got {tuple(noise.shape)}")
        if len(cond) != len(noise):
            raise ValueError(
                f"noise and cond must have the same rows, got {len(noise)} and {len(cond)}"
            )
        if cond.known is not None:
            check_known(cond.known, noise)
        return NextScaleState(noise, cond, keys, 0, self.tokenizer.blank(len(noise)))

    def look(self, state: NextScaleState) -> NextScaleState:
        if state.kept is not None or state.k == self.num_steps:
            return state
        k, x, cond = state.k, state.inputs, state.cond
        with self._precision():
            if k and state.memory is None:
                logits, memory = self.net.prefill(torch.cat(x, 1), k + 1, cond)
                logits = logits[:, self.ends[k] :]
            else:
                logits, memory = self.net.extend(x[-1] if x else None, k, cond, state.memory)
        return replace(state, kept=logits.float(), memory=memory)

    def _precision(self) -> AbstractContextManager[Any]:
        if not self.autocast:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def step(self, state: NextScaleState) -> NextScaleState:
        if state.k == self.num_steps:
            raise ValueError(f"the state has already made all {self.num_steps} scales")
        state, k = self.look(state), state.k
        tokens, codes = self._choose(state)
        f_hat = self.tokenizer.accumulate(state.f_hat, codes, k)
        moved = replace(state, k=k + 1, f_hat=f_hat, tokens=(*state.tokens, tokens), kept=None)
        if k + 1 == self.num_steps:
            return replace(moved, memory=None)  # gone before decoding
        return replace(moved, inputs=(*state.inputs, self.tokenizer.next_input(f_hat, k + 1)))

    def _choose(self, state: NextScaleState) -> tuple[Tensor, Tensor]:
        """The tokens of scale k, and what is added to f_hat: they, or shares of all codes."""
        assert state.kept is not None
        k, here = state.k, slice(self.ends[state.k], self.ends[state.k + 1])
        logits = self.decoding.truncate(state.kept, k)
        tokens = self.decoding.draw(logits, place(state.noise[:, here]), k)
        codes = tokens
        if self.decoding.smooth:
            u = state.keys.fold("smooth", k).uniform(logits.shape[1:], logits.device)
            codes = soften(logits, -u.log().float(), k / max(1, self.num_steps - 1))
        if state.cond.known is None:
            return tokens, codes
        values, keep = (given[:, here] for given in state.cond.known)
        tokens = torch.where(keep, values, tokens)
        if not self.decoding.smooth:
            return tokens, tokens
        return tokens, torch.where(keep[..., None], F.one_hot(values, logits.shape[-1]), codes)

    def preview(self, state: NextScaleState) -> Tensor:
        """The scales so far as images."""
        return self.tokenizer.decode(state.f_hat)

    def rekey(self, state: NextScaleState, keys: Keys) -> NextScaleState:
        ahead = range(state.k, self.num_steps)
        return redrawn(state, keys, self.ends, any(map(self.decoding.random, ahead)))

    def cost(self, k: int) -> Cost:
        return self.price(k, k)

    def price(self, first: int, k: int) -> Cost:
        """Of one pass over the scales `first`, ..., k."""
        tokens = self.ends[k + 1] - self.ends[first]
        return Cost(evaluations=self.passes, tokens=self.passes * tokens)


def redrawn(state: NextScaleState, keys: Keys, ends: Sequence[int], random: bool) -> NextScaleState:
    """With the noise that the new keys would have given the scales that are not sampled yet.

    ValueError unless anything there is `random`.
    """
    if not random:
        raise ValueError(
            f"nothing after scale {state.k} of {len(ends) - 1} is random, since top_k is 1: copies "
            "can never diverge"
        )
    past = ends[state.k]
    fresh = keys.normal(state.noise.shape[1:], state.noise.device)
    return replace(state, keys=keys, noise=torch.cat([state.noise[:, :past], fresh[:, past:]], 1))


def check_known(known: tuple[Tensor, Tensor], noise: Tensor) -> None:
    (values, keep), shape = known, tuple(noise.shape)
    if tuple(values.shape) != shape or tuple(keep.shape) != shape:
        found = f"{tuple(values.shape)} and {tuple(keep.shape)}"
        raise ValueError(f"known must be tokens and a mask of shape {shape} each, got {found}")
    if values.dtype != torch.int64 or keep.dtype != torch.bool:
        raise ValueError(f"known must be int64 and bool, got {values.dtype} and {keep.dtype}")
