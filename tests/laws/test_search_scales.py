"""Search on next-scale models: through their noise, and scale by scale."""

from dataclasses import dataclass, replace

import pytest
import torch
from scale_models import GUIDED, MVAR, VAR, made
from torch import Tensor

from genvis.random import HashKeys
from genvis.samplers.collaborative import Collaborative
from genvis.samplers.decoding import Decoding
from genvis.samplers.generate import generate, labelled
from genvis.samplers.next_scale import NextScaleConfig
from genvis.search.best_of_n import BestOfN
from genvis.search.engine import ParticleSearch
from genvis.search.features import Patches
from genvis.search.ledger import Ledger
from genvis.search.potentials import Value
from genvis.search.result import Anytime, SearchResult
from genvis.search.selections import BestChild
from genvis.search.tts_var import TTSVar
from genvis.search.zero_order import ZeroOrder
from genvis.types import Cond, Sampler

COND, KEYS = labelled(10, range(2)), HashKeys.of(0, range(2))
TOKENS = (1, 4, 16)  # of every scale
LOOKS = Patches(grid=2)


@dataclass(frozen=True)
class Brightness:
    name: str = "brightness"

    def __call__(self, images: Tensor, cond: Cond) -> Tensor:
        return images.mean((1, 2, 3))


@pytest.fixture(scope="module", params=["var", "mvar", "code"])
def sampler(request: pytest.FixtureRequest) -> Sampler:
    if request.param == "code":
        drafter, small = made(VAR), made(replace(MVAR, depth=1), seed=1)
        refiner = replace(small, tokenizer=drafter.tokenizer)
        return Collaborative(GUIDED.build(drafter), GUIDED.build(refiner), 2)
    return GUIDED.build(made({"var": VAR, "mvar": MVAR}[request.param]))


def find(search: Anytime, sampler: Sampler, ledger: Ledger | None = None) -> SearchResult:
    return search(sampler, COND, Brightness(), KEYS, ledger or Ledger())


def test_a_constant_population_is_best_of_n(sampler: Sampler) -> None:
    best = find(BestOfN(n=3), sampler)
    same = find(TTSVar(n=3, population=(1, 1, 1), cluster=(), resample=()), sampler)
    torch.testing.assert_close(same.images, best.images, rtol=0, atol=1e-5)
    assert torch.equal(same.chosen, best.chosen)
    assert find(BestOfN(n=1), sampler).images.equal(generate(sampler, COND, KEYS, chunk=2))


@pytest.mark.parametrize("how", ["cluster", "resample"])
def test_candidates_that_go_pay_for_no_scale_to_come(sampler: Sampler, how: str) -> None:
    scales = {"cluster": (), "resample": (), how: (1,)}
    search = TTSVar(n=2, population=(4, 2, 2), features=LOOKS, **scales)
    ledger = Ledger()
    found = find(search, sampler, ledger)
    tokens = 2 * 2 * 2 * (4 * TOKENS[0] + 4 * TOKENS[1] + 2 * TOKENS[2])  # B, N, both halves
    extra = 2 * 4 * 2 * sum(TOKENS[:2]) if isinstance(sampler, Collaborative) else 0
    assert ledger.spent.tokens == tokens + extra  # the refiner reads what was drafted
    assert ledger.spent.verifications == 2 * (4 if how == "cluster" else 8 + 4)
    assert found.trace[-1].parents.shape == (2, 4)
    assert (found.trace[0].scores is None) == (how == "cluster")


def test_answers_do_not_depend_on_the_chunk(sampler: Sampler) -> None:
    search = TTSVar(population=(5, 3, 3), cluster=(), resample=(1,), lam=50.0)
    whole, parts = (find(replace(search, chunk=chunk), sampler) for chunk in (64, 3))
    torch.testing.assert_close(whole.images, parts.images, rtol=0, atol=1e-4)
    assert torch.equal(whole.chosen, parts.chosen)


def test_children_share_their_parents_logits(sampler: Sampler) -> None:
    ledger = Ledger()
    search = ParticleSearch(n=1, children=3, potential=Value(), select=BestChild())
    found = find(search, sampler, ledger)
    if not isinstance(sampler, Collaborative):
        assert ledger.spent.tokens == 2 * 2 * sum(TOKENS)  # one pass a scale, of the winner
    assert len(set(found.trace[-1].scores[0].tolist())) == 3  # type: ignore[index]
    plain = find(BestOfN(n=1), sampler)
    assert (found.scores >= plain.scores).all()


def test_noise_search_needs_nothing_more(sampler: Sampler) -> None:
    found = find(ZeroOrder(neighbours=2, iterations=2), sampler)
    assert (found.curve.diff(dim=1) >= 0).all()
    assert found.noise is not None
    again = generate(sampler, COND, KEYS, chunk=2, noise=found.noise)
    torch.testing.assert_close(again, found.images, rtol=0, atol=1e-5)


def test_greedy_decoding_has_no_copies_to_choose_from() -> None:
    greedy = NextScaleConfig(decoding=Decoding(top_k=1)).build(made(VAR))
    with pytest.raises(ValueError, match="deterministic"):
        find(TTSVar(population=(2, 2, 2), cluster=(), resample=(1,)), greedy)
