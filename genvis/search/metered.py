"""A sampler and a verifier that are paid for before every call, and called `chunk` rows at a time.

Letters: B prompts, N trajectories of each, prompt-major: rows are B N; k steps are done.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from genvis.processes.denoiser import like
from genvis.random import Keys
from genvis.samplers.generate import price, run
from genvis.search.ledger import Ledger
from genvis.types import Cond, Cost, Sampler, Verifier, detach, join, repeat, take, to
from genvis.verifiers.scoring import needs_of, scores_of
from genvis.verifiers.similarity import with_previews

DECODE, VERIFY, DIFFERENTIATE = Cost(decodes=1), Cost(verifications=1), Cost(gradients=1)


@dataclass(frozen=True)
class Candidates:
    """Whole images (B n, 3, H, W), what they were made from, and what they are judged by: scores
    (B n, 1), or one (B n, V) by each of V verifiers that rank them together.
    """

    noise: Tensor
    keys: Keys
    images: Tensor
    table: Tensor

    def each(self, prompts: int) -> "Iterator[Candidates]":
        """One of every prompt, the first ones first."""
        n = len(self.table) // prompts
        return (take(self, slice(i, None, n)) for i in range(n))


@dataclass(frozen=True)
class Population:
    """Trajectories that have made k steps; `take(population, rows)` forks them.

    state is the sampler's; cond and keys, one a row, stay on the CPU; looked: the network has been
    evaluated where they stand; gradient: of the score with respect to state.x there, if asked for.
    """

    state: Any
    cond: Cond
    keys: Keys
    k: int = 0
    looked: bool = False
    gradient: Tensor | None = None

    def __len__(self) -> int:
        return len(self.cond)


@dataclass(frozen=True)
class Metered:
    sampler: Sampler
    verifier: Verifier
    ledger: Ledger
    chunk: int
    prompts: int

    @property
    def set_wise(self) -> bool:
        """Whether scores only say who is better among the candidates of one prompt."""
        return not getattr(self.verifier, "per_image", True)

    @property
    def price(self) -> Cost:
        """Of one image from noise to score."""
        return price(self.sampler) + VERIFY + (DECODE if self._compares else Cost())

    @property
    def _compares(self) -> bool:
        """Whether images are judged beside a preview of themselves."""
        return "previews" in needs_of(self.verifier)

    @torch.no_grad()
    def sample(self, noise: Tensor, cond: Cond, keys: Keys) -> Candidates:
        """Whole images from noise (B n, *noise_shape), judged, for B conditions."""
        self.ledger.reserve(self.price * len(noise))
        cond, found = repeat(cond, len(noise) // self.prompts), []
        for rows in self._chunks(len(noise)):
            own = take((noise, cond), rows)
            start, previews = (*to(own, self.sampler.device), take(keys, rows)), None
            if self._compares:
                step = self.verifier.preview_step(self.sampler.num_steps)  # type: ignore[attr-defined]
                images, previews = with_previews(self.sampler, *start, step)
            else:
                images = run(self.sampler, *start)
            found.append((images.cpu(), self._judge(images, own[1], previews).cpu()))
        return Candidates(noise, keys, *join(found))

    def rank(self, table: Tensor) -> Tensor:
        """Scores (rows,) of what was judged by (rows, 1), or among its prompt's by (rows, V)."""
        if not self.set_wise:
            return table[:, 0]
        by_prompt = table.T.unflatten(1, (self.prompts, -1))
        scores: Tensor = self.verifier.combine(by_prompt)  # type: ignore[attr-defined]
        return scores.flatten()

    def begin(self, noise: Tensor, cond: Cond, keys: Keys) -> Population:
        """At the noise end: noise (B n, *noise_shape), for B conditions."""
        cond = repeat(cond, len(noise) // self.prompts)
        start = self.sampler.init(*to((noise, cond), self.sampler.device), keys)
        return Population(start, cond, keys)

    @torch.no_grad()
    def step(self, them: Population) -> Population:
        paid = self._look_cost(them.k) if them.looked else Cost()
        self.ledger.reserve((self.sampler.cost(them.k) - paid) * len(them))
        state = join(
            [self.sampler.step(take(them.state, rows)) for rows in self._chunks(len(them))]
        )
        return replace(them, state=state, k=them.k + 1, looked=False, gradient=None)

    @torch.no_grad()
    def look(self, them: Population) -> Population:
        """With the network's estimate where they stand, which children share."""
        if them.looked or self.done(them):
            return them
        self.ledger.reserve(self._look_cost(them.k) * len(them))
        state = join(
            [self.sampler.look(take(them.state, rows)) for rows in self._chunks(len(them))]
        )
        return replace(them, state=state, looked=True)

    def advance(self, them: Population, k: int) -> Population:
        """As far as k steps."""
        while them.k < k:
            them = self.step(them)
        return them

    @torch.no_grad()
    def decode(self, them: Population) -> tuple[Population, Tensor]:
        """What they are going to be: previews (rows, 3, H, W), on the CPU."""
        them = self._ready(them)
        self.ledger.reserve(DECODE * len(them))
        images = [
            self.sampler.preview(take(them.state, rows)).cpu() for rows in self._chunks(len(them))
        ]
        return them, torch.cat(images)

    @torch.no_grad()
    def verify(self, them: Population) -> tuple[Population, Tensor, Tensor]:
        """Their previews and the scores (rows,) of these, float64; on the CPU."""
        them = self._ready(them)
        self.ledger.reserve((DECODE + VERIFY) * len(them))
        seen = []
        for rows in self._chunks(len(them)):
            images = self.sampler.preview(take(them.state, rows))
            seen.append((images.cpu(), self._judge(images, take(them.cond, rows)).cpu()))
        images, table = join(seen)
        return them, images, self.rank(table)

    def _ready(self, them: Population) -> Population:
        """Where a preview can be made of them."""
        return self.look(them) if getattr(self.sampler, "preview_looks", True) else them

    def twist(self, them: Population) -> tuple[Population, Tensor, Tensor]:
        """The same with the gradient of the scores, for trajectories that have not looked yet."""
        cost = self._look_cost(them.k) + DECODE + VERIFY + DIFFERENTIATE
        self.ledger.reserve(cost * len(them))
        parts = []
        for rows in self._chunks(len(them)):
            state, cond = take((them.state, them.cond), rows)
            with torch.enable_grad():
                x = state.x.detach().requires_grad_()
                here = self.sampler.with_x(state, x)  # type: ignore[attr-defined]
                images = self.sampler.preview(looked := self.sampler.look(here))
                scores = self._judge(images, cond)[:, 0]
            if not scores.requires_grad:
                raise ValueError(
                    f"a gradient proposal needs a differentiable verifier: {self.verifier.name} is "
                    "not"
                )
            (gradient,) = torch.autograd.grad(scores.sum(), x)
            parts.append(detach((looked, gradient, images.cpu(), scores.cpu())))
        state, gradient, images, scores = join(parts)
        return replace(them, state=state, looked=True, gradient=gradient), images, scores

    @torch.no_grad()
    def pushed(self, them: Population, push: Tensor) -> tuple[Population, Tensor]:
        """A step to x' = m + s^2 push + s z instead of m + s z, and log p(x') - log q(x') (rows,).

        With shift = s push that is -z . shift - |shift|^2 / 2.
        """
        mean, std = self.sampler.transition(them.state)  # type: ignore[attr-defined]
        if not std.any():
            return self.step(them), torch.zeros(len(them), dtype=torch.float64)
        self.ledger.reserve((self.sampler.cost(them.k) - self._look_cost(them.k)) * len(them))
        std = like(std, mean) if std.ndim == 0 else std
        z, shift = them.keys.fold("step", them.k).normal(mean.shape[1:], mean.device), std * push
        state = self.sampler.arrive(them.state, mean + std * (shift + z))  # type: ignore[attr-defined]
        ratio = -(z * shift + shift**2 / 2).double().flatten(1).sum(1).cpu()
        return replace(them, state=state, k=them.k + 1, looked=False, gradient=None), ratio

    def done(self, them: Population) -> bool:
        return them.k == self.sampler.num_steps

    def forks(self, them: Population) -> bool:
        """Whether copies of them can still come apart."""
        try:
            self.sampler.rekey(them.state, them.keys)
        except ValueError:
            return False
        return True

    def rekey(self, them: Population, *words: int | str) -> Population:
        """The same past, with futures of their own for such a purpose."""
        keys = them.keys.fold(*words)
        return replace(them, state=self.sampler.rekey(them.state, keys), keys=keys)

    def fork(self, them: Population, rows: Tensor, purpose: str) -> Population:
        """Those rows (m,), ascending within a parent's; every copy but the first of a parent gets a
        future of its own, by the parent's keys, the purpose, the step and its number among them.
        """
        copies, sibling = take(them, rows), among_equals(rows)
        if not sibling.any():
            return copies
        most = int(sibling.max()) + 1
        fresh = take(them.keys.fold(purpose, them.k).split(most), rows * most + sibling)
        pick = torch.arange(len(rows)) + len(rows) * (sibling > 0)
        keys = take(join([copies.keys, fresh]), pick)
        return replace(copies, state=self.sampler.rekey(copies.state, keys), keys=keys)

    @torch.no_grad()
    def renoise(self, them: Population, k: int, width: int, *words: int | str) -> Population:
        """`width` neighbours of each, back where k steps are done, by keys for such a purpose."""
        keys, many = them.keys.fold(*words).split(width), repeat(them, width)
        state = self.sampler.renoise(many.state, k, keys)  # type: ignore[attr-defined]
        return Population(state, many.cond, keys, k)

    def _look_cost(self, k: int) -> Cost:
        """The share of a step that `look` spends: all of it, unless the sampler says otherwise."""
        part = getattr(self.sampler, "look_cost", self.sampler.cost)
        return part(k)

    def _judge(self, images: Tensor, cond: Cond, previews: Tensor | None = None) -> Tensor:
        """(rows, 1), or (rows, V), float64."""
        device = getattr(self.verifier, "device", "cpu")
        images, cond, previews = to((images, cond, previews), device)
        if self.set_wise:
            table: Tensor = self.verifier.table(images, cond, previews).T  # type: ignore[attr-defined]
        else:
            table = scores_of(self.verifier, images, cond, previews)[:, None]
        return table.double()

    def _chunks(self, rows: int) -> Iterator[slice]:
        return (slice(start, start + self.chunk) for start in range(0, rows, self.chunk))


def candidates(keys: Keys, numbers: Sequence[int], prompts: int) -> Keys:
    """Keys of independent candidates, prompt-major; number 0 has the prompt's own keys."""
    own = join([keys if j == 0 else keys.fold("candidate", j) for j in numbers])
    return take(own, torch.arange(len(numbers) * prompts).view(len(numbers), prompts).T.flatten())


def among_equals(rows: Tensor) -> Tensor:
    """How many entries before this one are equal to it, (m,)."""
    order = rows.argsort(stable=True)
    ordered = rows[order]
    start = torch.searchsorted(ordered, ordered)  # of the run of equals
    number = torch.arange(len(rows)) - start
    return torch.empty_like(rows).scatter_(0, order, number)
