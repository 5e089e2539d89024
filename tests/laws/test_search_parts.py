"""The parts of search, each by itself: resampling, potentials, selections, features, proposals,
chains, and the samplers' optional abilities that searches build on.
"""

from dataclasses import dataclass, replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from gaussian import DDPM, ODE, SDE, Brightness, prompts, sampler
from torch import Tensor

from genvis.config import build, config
from genvis.processes.interpolants import VP, Linear
from genvis.random import HashKeys
from genvis.samplers.flops import Counted
from genvis.samplers.generate import labelled, run
from genvis.samplers.generator import Generator, SamplerConfig
from genvis.samplers.solvers import Heun, Solver
from genvis.samplers.stochastic import (
    DDIM,
    Ancestral,
    ChurnedHeun,
    EulerMaruyama,
    StochasticHeun,
)
from genvis.search.best import spread
from genvis.search.best_of_n import BestOfN
from genvis.search.engine import ParticleSearch
from genvis.search.features import Patches, first_component, representatives
from genvis.search.ledger import Ledger
from genvis.search.metered import Metered, Population, among_equals
from genvis.search.paths import Paths
from genvis.search.potentials import (
    Difference,
    Largest,
    Memory,
    Potential,
    Tempered,
    Terminal,
    Total,
    Value,
)
from genvis.search.proposals import Gradient
from genvis.search.rbf import Chain, RolloverBudgetForcing, Try
from genvis.search.resampling import RULES, ess
from genvis.search.selections import (
    BestChild,
    Clusters,
    DrawnChild,
    Keep,
    Resample,
    Selection,
    Top,
)
from genvis.search.zero_order import ZeroOrder, neighbours
from genvis.types import Cond, Cost, take

KEYS = HashKeys.of(1, range(2000))


@pytest.mark.parametrize("scheme", RULES)
@pytest.mark.parametrize(("n", "m"), [(7, 7), (7, 12), (5, 3)])
def test_every_scheme_gives_nw_children_on_average(scheme: str, n: int, m: int) -> None:
    rule, w = RULES[scheme], HashKeys.of(3, [n]).uniform((n,)).softmax(-1)  # type: ignore[index]
    u = KEYS.uniform((rule.uniforms(n, m),))
    parents = rule.parents(w.expand(len(u), -1), u, m)
    assert parents.shape == (len(u), m)
    children = torch.nn.functional.one_hot(parents, n).sum(1).double()
    error = children.mean(0) - m * w[0]
    assert (error.abs() < 4.5 * (m * w[0] / len(u)).sqrt() + 1e-9).all()
    if scheme in ("systematic", "ssp"):
        assert ((children >= (m * w).floor()) & (children <= (m * w).ceil())).all()
    if scheme == "residual":
        assert (children >= (m * w).floor()).all()


def test_even_weights_stay_as_they_are_under_systematic_resampling() -> None:
    n = 49
    parents = RULES["systematic"].parents(
        torch.full((3, n), 1 / n).double(), KEYS.uniform((1,))[:3], n
    )
    assert torch.equal(parents, torch.arange(n).expand(3, n))


def test_a_single_heavy_particle_takes_all() -> None:
    w = torch.tensor([[0.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    for rule in RULES.values():
        for u in (0.0, 0.5, 1 - 2.0**-53):
            given = torch.full((1, rule.uniforms(4, 4)), u, dtype=torch.float64)
            assert torch.equal(rule.parents(w, given, 4), torch.ones(1, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    "potential", [Terminal(), Difference(), Tempered(gamma=0.2), Largest(), Total(), Value()]
)
def test_a_lineage_pays_its_last_tilt_whatever_it_went_through(potential: Potential) -> None:
    tilts = KEYS.normal((6,))[:50].double()
    memory, paid = Memory.blank(50), torch.zeros(50, dtype=torch.float64)
    for k, tilt in enumerate(tilts.T[:-1], start=1):
        rows = KEYS.fold("who", k).uniform((50,))[0].mul(50).long()  # lineages move
        memory, paid = take(memory, rows), paid[rows]
        memory = memory.hear(tilt)
        log_g = potential(tilt, memory, k)
        memory, paid = memory.paid(log_g), paid + log_g
        torch.testing.assert_close(memory.log_g, paid)
        if isinstance(potential, Difference):
            torch.testing.assert_close(paid, potential.level(k) * tilt)
    last = tilts[:, -1]
    torch.testing.assert_close(paid + (last - memory.log_g), last)


def test_potentials_are_their_formulas() -> None:
    tilts = torch.tensor([[-3.0], [-1.0], [-2.0]], dtype=torch.float64)
    expected = {
        Largest(): [-3, -1, -1], Total(): [-3, -4, -6], Value(): [-3, -1, -2],
        Difference(): [-3, 2, -1], Terminal(): [0, 0, 0],
    }  # fmt: skip
    for potential, log_gs in expected.items():
        memory = Memory.blank(1)
        for k, (tilt, log_g) in enumerate(zip(tilts, log_gs, strict=True), start=1):
            memory = memory.hear(tilt)
            assert potential(tilt, memory, k) == log_g
            memory = memory.paid(potential(tilt, memory, k))
    assert Tempered(gamma=0.1).level(0) == 0
    assert Tempered(gamma=0.1).level(3) == pytest.approx(1.1**3 - 1)
    assert Tempered(gamma=0.1).level(50) == 1


LOG_W = torch.tensor([[0.0, 3.0, 1.0, 2.0, -1.0, -2.0]], dtype=torch.float64)
IMAGES = KEYS.normal((6, 3, 4, 4))[:1]


def test_selections_choose_by_their_rule() -> None:
    key = KEYS.fold("select")
    assert Top()(LOG_W, IMAGES, 3, 1, key).rows.tolist() == [[1, 2, 3]]
    assert BestChild()(LOG_W, IMAGES, 3, 2, key).rows.tolist() == [[1, 3, 4]]
    assert BestChild()(LOG_W, IMAGES, 2, 3, key).rows.tolist() == [[1, 3]]
    kept = Keep()(LOG_W, IMAGES, 6, 1, key)
    assert torch.equal(kept.log_w, LOG_W)
    for select in (Top(), BestChild()):
        assert not select(LOG_W, IMAGES, 3, 2, key).log_w.any()
    drawn = DrawnChild()(LOG_W.expand(2000, -1), IMAGES, 3, 2, key).rows  # (2000, 3)
    share = (drawn == torch.tensor([1, 3, 5])).double().mean(0)
    wanted = LOG_W.view(3, 2).softmax(1)[:, 1]
    assert ((share - wanted).abs() < 4.5 * (wanted * (1 - wanted) / 2000).sqrt()).all()


def test_weights_are_kept_where_nothing_is_resampled_and_moved_to_log_z_where_it_is() -> None:
    select = Resample(threshold=0.5)
    log_w = torch.stack([LOG_W[0] / 10, LOG_W[0] * 2 + 5])
    assert ess(log_w)[0] > 3 > ess(log_w)[1]
    choice = select(log_w, IMAGES, 6, 1, take(KEYS, slice(2)))
    assert torch.equal(choice.rows[0], torch.arange(6))
    assert torch.equal(choice.log_w[0], log_w[0])
    assert choice.log_z[0] == 0
    assert not choice.log_w[1].any()
    assert choice.log_z[1] == pytest.approx(float(log_w[1].exp().mean().log()))
    fewer = select(log_w, IMAGES, 2, 1, take(KEYS, slice(2)))  # a number changes by resampling only
    assert fewer.rows.shape == (2, 2)
    assert not fewer.log_w.any()


def test_representatives_are_different_and_of_different_kinds() -> None:
    kinds = torch.tensor([0, 1, 2, 0, 0, 1, 2, 0])
    x = 10.0 * kinds[:, None].double() + 0.1 * KEYS.normal((2,))[:8].double()
    for start in KEYS.uniform((3,))[:20]:
        chosen = representatives(x, 3, start)
        assert sorted(kinds[chosen].tolist()) == [0, 1, 2]
    same = representatives(torch.zeros(5, 2, dtype=torch.float64), 4, KEYS.uniform((4,))[0])
    assert len(set(same.tolist())) == 4
    assert representatives(x, 8, KEYS.uniform((8,))[0]).tolist() == list(range(8))
    with pytest.raises(ValueError, match="8 candidates have no 9"):
        representatives(x, 9, KEYS.uniform((9,))[0])


def test_the_principal_component_has_a_sign() -> None:
    tokens = KEYS.normal((6, 3))[:4].double()
    along = first_component(tokens)
    assert torch.equal(along.abs().max(1).values, along.max(1).values)
    torch.testing.assert_close(first_component(torch.flip(tokens, [2])), along)  # another basis
    variance = torch.linalg.svdvals(tokens - tokens.mean(1, keepdim=True))[:, 0]
    torch.testing.assert_close(along.norm(dim=1), variance)
    assert Patches(grid=2)(IMAGES[0]).shape == (6, 4)
    assert Patches(grid=2, of="pixels")(IMAGES[0]).shape == (6, 48)
    with pytest.raises(ValueError, match="grid must divide"):
        Patches(grid=3)(IMAGES[0])
    chosen = Clusters(features=Patches(grid=2))(LOG_W, IMAGES, 4, 1, take(KEYS, slice(1))).rows
    assert len(set(chosen[0].tolist())) == 4


def test_neighbours_keep_norm_and_cosine() -> None:
    pivot, moves = KEYS.normal((3, 4, 4))[:5], KEYS.fold("moves").normal((2, 3, 4, 4))[:5]
    around = neighbours(pivot, moves, 0.9).flatten(2)
    p = pivot.flatten(1)[:, None]
    torch.testing.assert_close(around.norm(dim=-1), p.norm(dim=-1).expand(5, 2))
    cosine = torch.nn.functional.cosine_similarity(around, p, dim=-1)
    torch.testing.assert_close(cosine, torch.full((5, 2), 0.9))


def test_copies_are_counted_among_equals() -> None:
    rows = torch.tensor([3, 1, 3, 3, 0, 1])
    assert among_equals(rows).tolist() == [0, 0, 1, 2, 0, 1]


def test_children_differ_and_the_first_goes_on_as_its_parent_would() -> None:
    cond, keys = prompts(2)
    meter = Metered(SDE, Brightness(), Ledger(), 64, 2)
    them = meter.step(meter.begin(keys.normal((3, 4, 4)), cond, keys))
    children = meter.step(meter.fork(them, torch.tensor([0, 0, 0, 1]), "child"))
    alone = meter.step(them)
    assert torch.equal(children.state.x[[0, 3]], alone.state.x)
    assert len({tuple(x.flatten().tolist()) for x in children.state.x}) == 4
    first, twice = take(them, torch.tensor([0])), torch.tensor([0, 0])
    again = meter.step(meter.fork(first, twice, "child"))
    assert torch.equal(again.state.x, children.state.x[:2])  # whoever else is there
    other = meter.step(meter.fork(first, twice, "copy"))
    assert not torch.equal(other.state.x[1], again.state.x[1])


@pytest.mark.parametrize("select", [Resample(threshold=1.0), Resample(scheme="ssp")])
def test_children_of_copies_come_apart_too(select: Resample) -> None:
    """Resampling at a step, and then children of everyone at the same step."""
    cond, keys = prompts(2)
    search = ParticleSearch(n=4, children=3, lam=300.0, select=select)
    rounds = list(search.rounds(SDE, cond, Brightness(), keys, Ledger()))
    assert len(rounds) == SDE.num_steps
    for found in rounds:
        assert found.particles is not None
        for own in found.particles.images:
            assert len({tuple(image.flatten().tolist()) for image in own}) == 12


@pytest.mark.parametrize("solver", [DDPM, Ancestral(), EulerMaruyama()])
def test_a_transition_is_what_a_step_draws_from(solver: object) -> None:
    on, (cond, keys) = sampler(solver=solver), prompts(3)  # type: ignore[arg-type]
    state = on.look(on.step(on.init(keys.normal((3, 4, 4)), cond, keys)))
    mean, std = on.transition(state)
    z = keys.fold("step", 1).normal((3, 4, 4))
    arrived = on.arrive(state, mean + std.float() * z)
    stepped = on.step(state)
    torch.testing.assert_close(arrived.x, stepped.x)
    assert (arrived.k, arrived.t, arrived.kept) == (stepped.k, stepped.t, None)
    with pytest.raises(ValueError, match="Heun have no Gaussian transition"):
        sampler(solver=Heun()).transition(state)


def test_renoising_lands_on_the_path() -> None:
    """From p_s of N(0, 1/4) to p_t: the right variance, and the right correlation with x_s."""
    steps, (cond, keys) = 6, prompts(4000)
    on = sampler(steps, side=2)
    alpha, sigma = (float(c) for c in VP().coeffs(on.times[4]))
    x = keys.normal((3, 2, 2)) * (0.25 * alpha**2 + sigma**2) ** 0.5
    state = replace(on.init(x, cond, keys), x=x, t=on.times[4], k=4)
    back = on.renoise(state, 2, keys.fold("new"))
    assert (back.k, back.t, back.kept) == (2, on.times[2], None)
    alpha_t, sigma_t = (float(c) for c in VP().coeffs(on.times[2]))
    variance = 0.25 * alpha_t**2 + sigma_t**2
    assert float(back.x.var()) == pytest.approx(variance, rel=0.03)
    kept = float((back.x * x).mean() / x.var())
    assert kept == pytest.approx(alpha_t / alpha, abs=0.02)
    for k in (-1, 4):
        with pytest.raises(ValueError, match=r"renoise goes back to a step in \[0, 4\)"):
            on.renoise(state, k, keys)


def test_the_price_of_a_push_is_the_ratio_of_two_normals() -> None:
    cond, keys = prompts(3)
    meter = Metered(SDE, Brightness(), Ledger(), 2, 3)
    them, _, scores = meter.twist(meter.step(meter.begin(keys.normal((3, 4, 4)), cond, keys)))
    assert torch.equal(scores, meter.verify(them)[2])
    mean, std = SDE.transition(them.state)
    pushed, ratio = Gradient(scale=2.0)(meter, them, 30.0)
    push = std**2 * 2.0 * 30.0 * them.gradient
    x = pushed.state.x
    p, q = (torch.distributions.Normal(m, std) for m in (mean, mean + push))
    wanted = (p.log_prob(x) - q.log_prob(x)).flatten(1).sum(1)
    torch.testing.assert_close(ratio, wanted.double(), rtol=1e-4, atol=1e-4)
    assert (ratio.abs() > 1e-3).all()
    # E[x0 | x] of Gaussian data is linear, so the gradient of brightness is known
    alpha, sigma = (float(c) for c in VP().coeffs(SDE.times[1]))
    gain = 0.25 * alpha / (0.25 * alpha**2 + sigma**2) / 8
    assert them.gradient is not None
    torch.testing.assert_close(them.gradient[:, 0, ::2], torch.full((3, 2, 4), gain))
    assert not them.gradient[:, 1:].any()


TOLD: list[tuple[int, float]] = []


@config
class Noted(Gradient):
    """Writes down by which tilt it is asked to push, after how many steps."""

    def __call__(self, meter: Metered, them: Population, tilt: float) -> tuple[Population, Tensor]:
        TOLD.append((them.k, tilt))
        return super().__call__(meter, them, tilt)


def test_a_step_is_pushed_by_the_tilt_that_holds_where_it_leads() -> None:
    cond, keys = prompts(1)
    potential = Tempered(gamma=0.1)
    search = ParticleSearch(n=2, lam=5.0, potential=potential, proposal=Noted())
    TOLD.clear()
    search(SDE, cond, Brightness(), keys, Ledger())
    assert [(k, 5.0 * potential.level(k + 1)) for k in range(6)] == TOLD


def test_the_output_policies_pick_by_score_by_weight_and_by_chance() -> None:
    cond, keys = prompts(400)
    base = ParticleSearch(n=3, lam=200.0, select=Keep())
    found = {}
    for output in ("best score", "best weight", "drawn"):
        search = replace(base, output=output)  # type: ignore[arg-type]
        found[output] = search(SDE, cond, Brightness(), keys, Ledger())
        assert found[output].policy == output
    particles = found["drawn"].particles
    assert particles is not None
    assert torch.equal(found["best score"].chosen, particles.scores.argmax(1))
    assert torch.equal(found["best weight"].chosen, particles.log_weights.argmax(1))
    w = particles.log_weights.exp()
    torch.testing.assert_close(w.sum(1), torch.ones(400, dtype=torch.float64))
    drawn = torch.nn.functional.one_hot(found["drawn"].chosen, 3)
    error = (drawn - w).mean(0)
    assert (error.abs() < 4.5 * (w * (1 - w)).mean(0).sqrt() / 20).all()
    torch.testing.assert_close(particles.log_weights, (200 * particles.scores).log_softmax(1))


def test_an_early_stop_says_how_far_its_images_are() -> None:
    cond, keys = prompts(2)
    first = next(ParticleSearch(n=3).rounds(SDE, cond, Brightness(), keys, Ledger()))
    assert first.policy == "best score, preview after 1 of 6 steps"


def test_diversity_is_the_distance_of_a_pair() -> None:
    images = KEYS.normal((5, 3, 2, 2))[:4]
    pairs = [(i, j) for i, j in product(range(5), repeat=2) if i < j]
    squares = [(images[:, i] - images[:, j]).double().square().flatten(1).mean(1) for i, j in pairs]
    torch.testing.assert_close(spread(images), torch.stack(squares).mean(0).sqrt())
    assert not spread(images[:, :1]).any()


@dataclass(frozen=True)
class Ranked:
    """Two opinions by rank, as an ensemble gives them."""

    name: str = "ranks"
    per_image: bool = False

    def table(self, images: Tensor, cond: Cond, previews: Tensor | None = None) -> Tensor:
        return torch.stack([images[:, 0].flatten(1).mean(1), -images[:, 1].flatten(1).mean(1)])

    def combine(self, table: Tensor) -> Tensor:
        return table.double().argsort(-1).argsort(-1).double().mean(0)

    def __call__(self, images: Tensor, cond: Cond) -> Tensor:
        raise AssertionError("ranks over a mixed batch mean nothing")


def test_verifiers_that_rank_see_all_candidates_of_a_prompt_and_no_others() -> None:
    cond, keys = prompts(3)
    found = BestOfN(n=5)(SDE, cond, Ranked(), keys, Ledger())
    own = [keys, *(keys.fold("candidate", j) for j in range(1, 5))]
    images = torch.stack([run(SDE, k.normal((3, 4, 4)), cond, k) for k in own], 1)  # (3, 5, ...)
    tables = Ranked().table(images.flatten(0, 1), cond).view(2, 3, 5)
    best = Ranked().combine(tables).argmax(1)
    assert torch.equal(found.images, images[torch.arange(3), best])
    assert torch.equal(found.chosen, best)
    for search in (ZeroOrder(iterations=2), Paths(), ParticleSearch(
        n=2, children=3, potential=Value(), select=BestChild()
    )):  # fmt: skip
        assert search(SDE, cond, Ranked(), keys, Ledger()).images.shape == (3, 3, 4, 4)
    for search in (ParticleSearch(), RolloverBudgetForcing(nfe=99, initial=2)):
        with pytest.raises(ValueError, match="ranks the images of one call"):
            search(SDE, cond, Ranked(), keys, Ledger())


@dataclass(frozen=True)
class Steady:
    """How little an image changed since step 3."""

    name: str = "steady"
    needs: tuple[str, ...] = ("previews",)

    def preview_step(self, num_steps: int) -> int:
        return 3

    def __call__(self, images: Tensor, cond: Cond, previews: Tensor) -> Tensor:
        return -(images - previews).square().flatten(1).mean(1)


def test_verifiers_may_ask_for_a_preview() -> None:
    cond, keys = prompts(2)
    ledger = Ledger()
    found = BestOfN(n=4)(SDE, cond, Steady(), keys, ledger)
    assert (found.curve[:, -1] < 0).all()
    assert ledger.spent.decodes == 2 * 4 * 2
    assert ledger.spent.evaluations == 2 * 4 * 6
    with pytest.raises(ValueError, match="steady needs a preview of every image"):
        ParticleSearch()(SDE, cond, Steady(), keys, Ledger())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused(value: float) -> None:
    class Broken:
        name = "broken"

        def __call__(self, images: Tensor, cond: Cond) -> Tensor:
            return torch.full((len(images),), value)

    cond, keys = prompts(1)
    for search in (BestOfN(n=1), ParticleSearch()):
        with pytest.raises(ValueError, match="broken gave a score that is not finite"):
            search(SDE, cond, Broken(), keys, Ledger())


def attempt(score: float, k: int) -> Try:
    return Try(SimpleNamespace(k=k), torch.zeros(1), score, 0)  # type: ignore[arg-type]


def test_a_chain_rolls_over_what_it_did_not_need() -> None:
    start = attempt(0.0, 0)
    chain = Chain(start, goal=0.0, quota=3)
    chain = chain.hear(attempt(-1.0, 1), q=3, open_end=True)
    assert (chain.at, chain.tried, chain.quota) == (start, 1, 3)
    better = attempt(0.5, 1)
    chain = chain.hear(better, q=3, open_end=True)  # the second try of three: one is left over
    assert (chain.at, chain.tried, chain.quota, chain.goal) == (better, 0, 4, 0.5)
    best = attempt(0.2, 2)
    for tried in (attempt(-2.0, 2), best, attempt(0.1, 2)):
        chain = chain.hear(tried, q=3, open_end=True)
        assert chain.at is better
    # none was better: the best of them, goal kept
    chain = chain.hear(attempt(-1.0, 2), q=3, open_end=True)
    assert (chain.at, chain.quota, chain.goal) == (best, 3, 0.5)
    assert chain.answer is best  # nothing tried yet from there
    end = Chain(attempt(0.5, 4), goal=0.5, quota=1)
    for score in (0.7, 0.6):
        end = end.hear(attempt(score, 5), q=1, open_end=False)
    assert (end.at.here.k, end.goal, end.answer.score) == (4, 0.7, 0.7)


def test_rollover_budget_forcing_finishes_what_it_found_within_its_budget() -> None:
    cond, keys = prompts(3)
    for nfe in (41, 60):
        raw = RolloverBudgetForcing(chains=2, initial=3, nfe=nfe - 5, finish=False)
        whole = RolloverBudgetForcing(chains=2, initial=3, nfe=nfe)
        ledger = Ledger()
        unfinished = raw(SDE, cond, Brightness(), keys, Ledger())
        found = whole(SDE, cond, Brightness(), keys, ledger)
        assert found.searched is not None
        assert torch.equal(found.searched, unfinished.scores)
        assert torch.equal(found.scores, Brightness()(found.images, cond))
        assert ledger.spent.evaluations <= 3 * nfe
    assert "preview" in unfinished.policy


def test_rollover_budget_forcing_pays_for_one_look_a_try() -> None:
    """K N to start from, then N a round, below the budget."""
    cond, keys = prompts(3)
    for nfe, tries in ((36, 14), (37, 15), (55, 24)):
        ledger = Ledger()
        raw = RolloverBudgetForcing(chains=2, initial=3, nfe=nfe, finish=False)
        raw(SDE, cond, Brightness(), keys, ledger)
        assert ledger.spent.evaluations == 3 * (2 * 3 + 2 * tries)
        assert 2 * 3 + 2 * tries < nfe


@pytest.mark.parametrize("solver", [StochasticHeun(), ChurnedHeun(levels=(1.0, 50.0))])
def test_rollover_budget_forcing_tries_no_step_that_is_always_the_same(solver: Solver) -> None:
    """These draw no noise long before the last step."""
    cond, keys = prompts(2)
    found = RolloverBudgetForcing(nfe=99, initial=2)(
        sampler(solver=solver), cond, Brightness(), keys, Ledger()
    )
    assert found.policy == "best score of the previews, finished"
    for this in found.trace[1:-1]:
        assert this.scores is not None
        assert (this.scores[:, 0] != this.scores[:, 1]).all()


@pytest.mark.parametrize("select", [Top(), BestChild(), DrawnChild()])
def test_where_weights_are_forgotten_only_the_last_tilt_counts(select: Selection) -> None:
    """So that what the best are chosen by is their score, not what it gained; and the end's too."""
    cond, keys = prompts(3)
    base = ParticleSearch(n=2, children=3, lam=20.0, select=select)
    value = replace(base, potential=Value())(SDE, cond, Brightness(), keys, Ledger())
    gains = replace(base, potential=Difference())(SDE, cond, Brightness(), keys, Ledger())
    assert torch.equal(value.images, gains.images)
    for found in (value, gains):
        assert found.particles is not None
        wanted = (20 * found.particles.scores).log_softmax(1)
        torch.testing.assert_close(found.particles.log_weights, wanted)


def test_a_deterministic_solver_may_search_noise_and_paths() -> None:
    cond, keys = prompts(2)
    for search in (BestOfN(n=2), ZeroOrder(iterations=1), Paths()):
        assert search(ODE, cond, Brightness(), keys, Ledger()).scores.isfinite().all()


def test_ddim_without_noise_counts_as_deterministic() -> None:
    cond, keys = prompts(1)
    with pytest.raises(ValueError, match="never come apart"):
        ParticleSearch()(sampler(solver=DDIM(eta=0.0)), cond, Brightness(), keys, Ledger())


def test_a_look_is_paid_once_and_a_second_evaluation_with_the_step() -> None:
    cond, keys = prompts(2)
    for solver, looks, steps in ((DDPM, 1, 0), (Heun(), 1, 1)):
        ledger = Ledger()
        on = Counted(sampler(solver=solver), (100,) * 6)  # type: ignore[arg-type]
        meter = Metered(on, Brightness(), ledger, 64, 2)
        them = meter.look(meter.begin(keys.normal((3, 4, 4)), cond, keys))
        share = 100 * looks // (looks + steps)
        assert ledger.spent == Cost(evaluations=2 * looks, flops=2 * share)
        meter.step(meter.look(them))
        assert ledger.spent == Cost(evaluations=2 * (looks + steps), flops=200)


def test_a_flow_is_searched_along_the_path_of_an_sde(generator: Generator) -> None:
    """Rollover Budget Forcing as released, on a network of the linear path."""
    config = build(SamplerConfig, {
        "along": "vp", "grid": "circle", "steps": 5,
        "solver": {
            "name": "euler_maruyama", "last": "noisy",
            "diffusion": {"name": "volatility", "scale": 3.0, "shape": "square"},
        },
    })  # fmt: skip
    on, cond, keys = generator.sampler(config), labelled(10, range(2)), take(KEYS, slice(2))
    assert on.denoise.process == VP()
    search = RolloverBudgetForcing(chains=2, initial=2, nfe=40)
    found = search(on, cond, Brightness(), keys, Ledger())
    assert found.images.shape == (2, 3, 8, 8)
    assert (found.curve[:, -2] >= found.curve[:, 0]).all()  # of previews
    own, state = generator.sampler(), on.init(keys.normal(on.noise_shape), cond, keys)
    state = on.look(on.step(state))
    t = Linear().time(2 * torch.log(torch.divide(*VP().coeffs(state.t))))
    scale = torch.hypot(*Linear().coeffs(t)) / torch.hypot(*VP().coeffs(state.t))
    there = own.denoise(state.x * scale.float(), t, cond)
    torch.testing.assert_close(state.kept, there)
