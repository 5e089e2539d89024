"""Search over paths: noise the best samples a little, denoise them a little more, keep the best.

Source: Ma et al. 2025, "Inference-time Scaling for Diffusion Models beyond Scaling Denoising
Steps", section 3.1 and table 6.
Letters: B prompts; N paths of each, M fresh noises a path; S steps of the sampler.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from genvis.config import config
from genvis.random import Keys
from genvis.search.best import picked, when
from genvis.search.ledger import Ledger
from genvis.search.metered import Metered, candidates
from genvis.search.result import Anytime, Round, SearchResult
from genvis.search.selections import Top
from genvis.types import Cond, Sampler, Verifier, take
from genvis.verifiers.scoring import require


@config
class Paths(Anytime):
    """n paths run until `start` of the steps are left; a round takes each of them `forward` steps
    back into noise, `width` times, and `back` steps towards the data again; the best n of all stay.

    start, forward and back are shares of the sampler's steps, and back - forward is what a round
    gains; on a linear path with uniform steps they are times, as in the paper.
    """

    n: int = 2
    width: int = 5
    start: float = 0.11
    forward: float = 0.78
    back: float = 0.81

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n < 1 or self.width < 1:
            raise ValueError(f"n and width must be at least 1, got {self.n} and {self.width}")
        if not (0 < self.start < 1 and 0 < self.forward < self.back <= 1):
            raise ValueError(
                "start must be in (0, 1) and 0 < forward < back <= 1, got start "
                f"{self.start}, forward {self.forward}, back {self.back}"
            )

    def explore(
        self, sampler: Sampler, cond: Cond, verifier: Verifier, keys: Keys, ledger: Ledger
    ) -> Iterator[SearchResult]:
        if not hasattr(sampler, "renoise"):
            raise ValueError(f"{type(sampler).__name__} cannot go back into noise (`renoise`)")
        require(verifier, cond, across_calls=False)  # each round's are compared with each other
        steps, prompts = sampler.num_steps, len(cond)
        if steps < 2:
            raise ValueError(f"paths go back and forth between steps: at least 2, got {steps}")
        forward = round(self.forward * steps)
        back = max(round(self.back * steps), forward + 1)
        meter, top = Metered(sampler, verifier, ledger, self.chunk, prompts), Top()
        own = candidates(keys, range(self.n), prompts)
        them = meter.begin(own.normal(sampler.noise_shape), cond, own)
        parents = torch.full((prompts, self.n), -1)
        trace: tuple[Round, ...] = ()
        them = meter.advance(them, min(max(steps - round(self.start * steps), 1), steps - 1))
        while not meter.done(them):
            origin = max(them.k - forward, 0)
            them = meter.renoise(them, origin, self.width, "round", len(trace))
            them, images, scores = meter.verify(meter.advance(them, min(origin + back, steps)))
            images, scores = (v.unflatten(0, (prompts, -1)) for v in (images, scores))
            numbers = len(trace) * scores.shape[1] + torch.arange(scores.shape[1])
            answer = picked(
                scores.argmax(1), images, scores, numbers.expand_as(scores),
                when("best score", them.k, steps),
            )  # fmt: skip
            born = parents.repeat_interleave(self.width, 1)
            trace = (*trace, Round(ledger.spent, born, scores, answer.scores))
            yield replace(answer, trace=trace)
            best = top(scores, images, self.n, 1, keys).rows
            first = torch.arange(0, scores.numel(), scores.shape[1])[:, None]
            them, parents = take(them, (first + best).flatten()), numbers[best]
