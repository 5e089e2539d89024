"""What every search obeys: the same answer whatever the chunk and the company, budgets that hold,
costs in closed form, trees that grow from numbers, one line for what cannot be.
"""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from gaussian import ODE, SDE, Brightness, prompts, sampler

from genvis.config import ConfigError
from genvis.samplers.diffusion import DiffusionSampler
from genvis.samplers.generate import run
from genvis.search import SEARCHES
from genvis.search.best_of_n import BestOfN
from genvis.search.engine import ParticleSearch
from genvis.search.ledger import Budget, BudgetExceededError, Ledger
from genvis.search.paths import Paths
from genvis.search.potentials import Terminal
from genvis.search.refined import Refined
from genvis.search.result import Anytime, SearchResult
from genvis.search.selections import Keep
from genvis.search.zero_order import ZeroOrder
from genvis.types import Cond, Cost, take

SMALL = {  # every name of the table, in a few evaluations
    "best_of_n": {"n": 5},
    "zero_order": {"neighbours": 3, "iterations": 3},
    "paths": {"n": 2, "width": 3},
    "particles": {"n": 5},
    "beam": {"n": 2, "children": 3},
    "blockwise": {"n": 2, "children": 3, "every": 2},
    "svdd": {"n": 2, "children": 3},
    "smc": {"n": 5, "lam": 20.0},
    "fk_steering": {"n": 4, "every": 2},
    "tds": {"n": 4, "lam": 5.0},
    "das": {"n": 4, "lam": 5.0, "potential": {"name": "tempered", "gamma": 0.1}},
    "rbf": {"chains": 2, "initial": 3, "nfe": 41},
    "tts_var": {
        "population": [6, 4, 4, 2, 2, 2], "cluster": [1], "resample": [3],
        "features": {"name": "patches", "grid": 2},
    },
}  # fmt: skip
WHOLE = ("best_of_n", "zero_order")


def method(name: str, **changes: object) -> Anytime:
    return SEARCHES.build({"name": name, **SMALL[name], **changes})


def find(
    search: Anytime, on: DiffusionSampler = SDE, count: int = 3, ledger: Ledger | None = None
) -> SearchResult:
    cond, keys = prompts(count)
    return search(on, cond, Brightness(), keys, ledger or Ledger())


def test_every_name_has_a_small_setting_here() -> None:
    assert set(SEARCHES) == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_answers_do_not_depend_on_the_chunk(name: str) -> None:
    whole = find(method(name))
    for chunk in (1, 4):
        parts = find(method(name, chunk=chunk))
        assert torch.equal(parts.images, whole.images)
        assert torch.equal(parts.scores, whole.scores)
        assert torch.equal(parts.curve, whole.curve)


@pytest.mark.parametrize("name", SMALL)
def test_a_prompt_is_searched_as_if_it_were_alone(name: str) -> None:
    together, (cond, keys) = find(method(name)), prompts(3)
    alone = method(name)(
        SDE, take(cond, slice(1, 2)), Brightness(), take(keys, slice(1, 2)), Ledger()
    )
    assert torch.equal(alone.images, together.images[1:2])
    assert torch.equal(alone.curve, together.curve[1:2])
    assert torch.equal(alone.diversity, together.diversity[1:2])


@pytest.mark.parametrize("name", SMALL)
def test_scores_are_those_of_the_images(name: str) -> None:
    found = find(method(name))
    assert torch.equal(Brightness()(found.images, Cond()), found.scores)
    assert torch.equal(found.curve[:, -1], found.scores)
    assert found.policy.startswith("best")


@pytest.mark.parametrize("name", SMALL)
def test_the_tree_grows_from_numbers(name: str) -> None:
    found, count = find(method(name)), 0
    for this in found.trace:
        assert this.parents.shape[0] == 3
        assert this.parents.min() >= -1
        assert this.parents.max() < count
        assert this.scores is None or this.scores.shape == this.parents.shape
        count += this.parents.shape[1]
    assert found.chosen.min() >= 0
    assert found.chosen.max() < count
    scores = [this.scores for this in found.trace if this.scores is not None]
    if len(scores) == len(found.trace):  # the chosen number is the chosen candidate's
        every = torch.cat(scores, 1)
        assert torch.equal(every.gather(1, found.chosen[:, None])[:, 0], found.scores)


@pytest.mark.parametrize("name", SMALL)
def test_a_smaller_budget_finds_a_prefix_and_is_never_passed(name: str) -> None:
    full, totals = find(method(name)), []
    ends = {this.spent.evaluations for this in full.trace}
    for limit in sorted(ends | {end - 1 for end in ends if end > 9}):
        ledger = Ledger(Budget(evaluations=limit + (18 if name == "rbf" else 0)))  # to finish
        try:
            part = find(method(name), ledger=ledger)
        except BudgetExceededError:
            assert limit < next(t.spent.evaluations for t in full.trace if t.best is not None)
            continue
        assert ledger.spent.evaluations <= limit + (18 if name == "rbf" else 0)
        assert ledger.held == Cost()
        assert part.spent == ledger.spent  # also what was in vain
        assert name != "rbf" or part.policy.endswith("finished")  # what that takes was held back
        done = [this for this in part.trace if this.parents.shape[1]]  # not cut short
        for ours, theirs in zip(done[:-1], full.trace, strict=False):
            assert torch.equal(ours.parents, theirs.parents)
        totals.append(len(done))
    assert totals == sorted(totals)
    assert totals[-1] == len(full.trace)


@pytest.mark.parametrize("name", ["paths", "svdd", "smc", "rbf"])
def test_what_a_cut_round_spent_is_told(name: str) -> None:
    """Evaluations whose images nobody could look at any more."""
    on = sampler(steps=25 if name == "paths" else 6)
    full, vain = find(method(name), on), 0
    for limit in range(6, full.spent.verifications, 2):
        ledger = Ledger(Budget(verifications=limit))
        try:
            part = find(method(name), on, ledger=ledger)
        except BudgetExceededError:
            continue
        assert part.spent == ledger.spent
        assert torch.equal(part.curve[:, -1], part.scores)
        vain += any(this.parents.shape[1] == 0 for this in part.trace)
    assert vain > 0


@pytest.mark.parametrize("name", SMALL)
def test_a_budget_below_the_first_call_is_refused(name: str) -> None:
    with pytest.raises(BudgetExceededError, match="the budget of 2 evaluations is too small"):
        find(method(name), ledger=Ledger(Budget(evaluations=2)))


def test_costs_are_in_closed_form() -> None:
    """Evaluations a prompt; S steps, of one evaluation each."""
    s, expected = 6, {}
    expected["best_of_n"] = 5 * s
    expected["zero_order"] = (1 + 3 * 3) * s
    expected["smc"] = 5 * s
    expected["fk_steering"] = 4 * s
    expected["tds"] = expected["das"] = 4 * s
    # children share their parent's look; the last step, which is certain, has none
    expected["svdd"] = expected["beam"] = 2 + (s - 1) * 2 * 3
    expected["tts_var"] = 3 * 6 + 2 * 4 + 2  # previews of a diffusion cost a look
    for name, evaluations in expected.items():
        ledger = Ledger()
        find(method(name), ledger=ledger)
        assert ledger.spent.evaluations == 3 * evaluations, name
    ledger = Ledger()
    find(method("rbf"), ledger=ledger)
    assert ledger.spent.evaluations <= 3 * 41
    assert ledger.spent.verifications > 0
    assert ledger.spent.gradients == 0
    ledger = Ledger()
    find(method("tds"), ledger=ledger)
    assert ledger.spent.gradients == 3 * 4 * s  # at every step but the end


def test_best_of_one_is_plain_sampling() -> None:
    cond, keys = prompts(3)
    plain = run(SDE, keys.normal((3, 4, 4)), cond, keys)
    for search in (BestOfN(n=1), ParticleSearch(n=1, select=Keep()), ParticleSearch(n=1)):
        assert torch.equal(find(search).images, plain)


def test_particles_that_are_never_resampled_are_best_of_n() -> None:
    best = find(BestOfN(n=6))
    smc = find(ParticleSearch(n=6, potential=Terminal(), select=Keep()))
    assert torch.equal(smc.images, best.images)
    assert torch.equal(smc.scores, best.scores)
    assert torch.equal(smc.chosen, best.chosen)
    torch.testing.assert_close(smc.diversity, best.diversity)
    assert smc.spent == best.spent


def test_best_of_n_and_zero_order_never_get_worse() -> None:
    for search in (BestOfN(n=8), ZeroOrder(neighbours=2, iterations=5)):
        curve = find(search).curve
        assert (curve.diff(dim=1) >= 0).all()
        assert (curve[:, -1] > curve[:, 0]).all()


@pytest.mark.parametrize("name", WHOLE)
def test_the_noise_and_keys_it_returns_make_the_image_it_returns(name: str) -> None:
    found, (cond, _) = find(method(name)), prompts(3)
    assert found.noise is not None
    assert torch.equal(run(SDE, found.noise, cond, found.keys), found.images)


def test_search_improves_on_plain_sampling() -> None:
    plain = find(BestOfN(n=1), count=8).scores.mean()
    for name in SMALL:
        assert find(method(name), count=8).scores.mean() > plain, name


def test_a_cheap_search_is_sampled_again_for_more_steps() -> None:
    search, final = BestOfN(n=4), sampler(steps=12, solver=ODE.solver)
    cond, keys = prompts(3)
    ledger = Ledger()
    found = Refined(search, final)(ODE, cond, Brightness(), keys, ledger)
    cheap = find(search, ODE)
    assert torch.equal(found.images, run(final, cheap.noise, cond, keys))
    assert found.searched is not None
    assert torch.equal(found.searched, cheap.scores)
    assert not torch.equal(found.scores, found.searched)
    assert ledger.spent.evaluations == 3 * (4 * 6 + 12)
    limited = Ledger(Budget(evaluations=3 * (2 * 6 + 12) + 5))  # two candidates, and the end
    part = Refined(search, final)(ODE, cond, Brightness(), keys, limited)
    assert len(part.trace) == 3
    assert limited.spent.evaluations == 3 * (2 * 6 + 12)
    limited = Ledger(Budget(evaluations=3 * (4 * 6 + 11)))  # the end fits once a round less is made
    part = Refined(ZeroOrder(neighbours=1), final)(ODE, cond, Brightness(), keys, limited)
    assert limited.spent.evaluations == 3 * (3 * 6 + 12)
    assert part.policy == "best score, sampled again"
    with pytest.raises(BudgetExceededError):
        Refined(search, final)(ODE, cond, Brightness(), keys, Ledger(Budget(evaluations=3 * 12)))
    with pytest.raises(ValueError, match="does not end in a noise"):
        Refined(Paths(), final)


@pytest.mark.parametrize("name", [n for n in SMALL if n not in (*WHOLE, "paths")])
def test_copies_are_refused_where_they_cannot_come_apart(name: str) -> None:
    with pytest.raises(ValueError, match="deterministic") as caught:
        find(method(name), ODE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "best_of_m"}, "'best_of_m' is not one of"),
        ({"name": "smc", "particles": 3}, "ParticleSearch has no field 'particles'"),
        ({"name": "smc", "n": 0}, "n and children must be at least 1"),
        ({"name": "smc", "chunk": 0}, "chunk must be at least 1"),
        ({"name": "smc", "lam": 0.0}, "lam must be positive and finite"),
        ({"name": "smc", "every": 0}, "every must be at least 1"),
        ({"name": "smc", "select": {"name": "resample", "threshold": 0.0}}, "threshold must be"),
        ({"name": "smc", "select": {"name": "resample", "scheme": "roulette"}}, "scheme"),
        ({"name": "svdd", "select": "keep"}, "children must be 1"),
        ({"name": "tds", "children": 2}, "a gradient proposal has 1 child"),
        ({"name": "das", "potential": {"name": "tempered", "gamma": 0.0}}, "gamma must be"),
        ({"name": "best_of_n", "n": 0}, "n must be at least 1"),
        ({"name": "zero_order", "cosine": 1.0}, "cosine must be in"),
        ({"name": "paths", "forward": 0.9}, "forward < back"),
        ({"name": "rbf", "chains": 0}, "chains and initial must be at least 1"),
        ({"name": "tts_var", "population": [2, 4]}, "population must fall or stay"),
        ({"name": "tts_var", "population": [4, 2]}, "population falls at scale 1"),
    ],
)
def test_bad_settings_are_refused_in_one_line(config: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        SEARCHES.build(config)
    assert "\n" not in str(caught.value)


def test_what_a_sampler_cannot_do_is_refused_in_one_line() -> None:
    class Bare:
        """A sampler without the optional parts."""

        stochastic, num_steps, noise_shape = True, 6, (3, 4, 4)

    cond, keys = prompts(1)
    for name, message in {"paths": "cannot go back into noise", "tds": "no Gaussian steps"}.items():
        with pytest.raises(ValueError, match=f"Bare.*{message}"):
            method(name)(Bare(), cond, Brightness(), keys, Ledger())  # type: ignore[arg-type]
    blind = replace(Brightness(), differentiable=False)
    with pytest.raises(ValueError, match="brightness has no gradients"):
        method("tds")(SDE, cond, blind, keys, Ledger())
    with pytest.raises(ValueError, match="every must be below the sampler's 6 steps, got 6"):
        find(method("smc", every=6))
    with pytest.raises(ValueError, match="a gradient proposal needs a score at every step"):
        find(method("tds", every=2))
    with pytest.raises(ValueError, match="nfe must be at least 23, for 6 noises"):
        find(method("rbf", nfe=22))
    with pytest.raises(ValueError, match="a number for each of the 6 scales, got 13"):
        find(SEARCHES.build("tts_var"))
    for name in ("svdd", "tts_var"):
        with pytest.raises(ValueError, match="a terminal potential gives nobody a score on the w"):
            find(method(name, potential="terminal"))
    with pytest.raises(ValueError, match="paths go back and forth between steps: at least 2"):
        find(method("paths"), sampler(steps=1))


def test_settings_survive_being_saved() -> None:
    for name in SMALL:
        made = method(name)
        assert SEARCHES.build(SEARCHES.dump(made)) == made


def test_rounds_are_the_answers_on_the_way() -> None:
    cond, keys = prompts(2)
    for name in SMALL:
        found = list(method(name).rounds(SDE, cond, Brightness(), keys, Ledger()))
        assert torch.equal(found[-1].images, find(method(name), count=2).images)
        for before, later in pairwise(found):
            assert len(before.trace) < len(later.trace)
            assert before.spent.verifications <= later.spent.verifications
