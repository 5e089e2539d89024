"""Best of N: never worse than one candidate, a prefix of a larger search, within its budget."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from genvis.random import HashKeys
from genvis.samplers.generate import generate, labelled, price
from genvis.samplers.generator import Generator
from genvis.search.best_of_n import BestOfN
from genvis.search.ledger import Budget, BudgetExceededError, Ledger
from genvis.types import Cond, Cost
from genvis.verifiers import VERIFIERS


@dataclass(frozen=True)
class Brightness:
    name: str = "brightness"

    def __call__(self, images: Tensor, cond: Cond) -> Tensor:
        return images.mean((1, 2, 3))


COND, KEYS = labelled(10, range(6)), HashKeys.of(0, range(6))


def test_best_of_one_is_plain_sampling(generator: Generator) -> None:
    sampler = generator.sampler()
    found = BestOfN(n=1)(sampler, COND, Brightness(), KEYS, Ledger())
    assert torch.equal(found.images, generate(sampler, COND, KEYS))


def test_every_image_is_the_best_of_its_candidates(generator: Generator) -> None:
    sampler = generator.sampler()
    found = BestOfN(n=4)(sampler, COND, Brightness(), KEYS, Ledger())
    keys = [KEYS, *(KEYS.fold("candidate", j) for j in (1, 2, 3))]
    candidates = torch.stack([generate(sampler, COND, k) for k in keys])  # (4, 6, 3, 8, 8)
    scores = torch.stack([Brightness()(images, COND) for images in candidates])
    best = scores.argmax(0)
    assert torch.equal(found.images, candidates[best, torch.arange(6)])
    best_so_far = scores.cummax(0).values.T.double()
    torch.testing.assert_close(found.curve, best_so_far, rtol=0, atol=1e-6)
    assert len(best.unique()) > 1  # the search really chose


def test_the_noise_it_returns_makes_the_image_it_returns(generator: Generator) -> None:
    sampler = generator.sampler()
    found = BestOfN(n=4)(sampler, COND, Brightness(), KEYS, Ledger())
    again = generate(sampler, COND, KEYS, noise=found.noise)
    torch.testing.assert_close(again, found.images, rtol=0, atol=1e-6)


def test_a_smaller_search_is_a_prefix_of_a_larger_one(generator: Generator) -> None:
    sampler = generator.sampler()
    rounds = list(BestOfN(n=5).rounds(sampler, COND, Brightness(), KEYS, Ledger()))
    for n in (1, 3):
        small = BestOfN(n=n)(sampler, COND, Brightness(), KEYS, Ledger())
        assert torch.equal(small.images, rounds[n - 1].images)
        assert torch.equal(small.curve, rounds[-1].curve[:, :n])


def test_results_do_not_depend_on_the_chunk(generator: Generator) -> None:
    sampler = generator.sampler()
    whole = BestOfN(n=3)(sampler, COND, Brightness(), KEYS, Ledger())
    parts = BestOfN(n=3, chunk=4)(sampler, COND, Brightness(), KEYS, Ledger())
    torch.testing.assert_close(whole.images, parts.images, rtol=0, atol=1e-5)


def test_the_ledger_counts_and_the_budget_holds(generator: Generator) -> None:
    sampler = generator.sampler()
    one = price(sampler) + Cost(verifications=1)
    ledger = Ledger()
    BestOfN(n=3)(sampler, COND, Brightness(), KEYS, ledger)
    assert ledger.spent == one * 18
    limited = Ledger(Budget(evaluations=2 * 6 * one.evaluations + 1))  # two candidates and a bit
    found = BestOfN(n=3)(sampler, COND, Brightness(), KEYS, limited)
    assert found.curve.shape == (6, 2)
    assert limited.spent == one * 12
    with pytest.raises(BudgetExceededError, match="budget of 5 evaluations is too small"):
        BestOfN(n=3)(sampler, COND, Brightness(), KEYS, Ledger(Budget(evaluations=5)))


@pytest.mark.parametrize("kind", ["evaluations", "decodes", "verifications"])
def test_a_budget_of_zero_is_refused_and_every_kind_is_limited(kind: str) -> None:
    with pytest.raises(ValueError, match=f"a budget of 0 {kind} buys nothing"):
        Budget(**{kind: 0})
    ledger = Ledger(Budget(**{kind: 3}))
    ledger.reserve(Cost(**{kind: 3}))
    with pytest.raises(BudgetExceededError, match=f"3 {kind} is too small: the next call needs 4"):
        ledger.reserve(Cost(**{kind: 1}))
    assert ledger.spent == Cost(**{kind: 3})


def test_class_log_prob_scores_the_label() -> None:
    from genvis.data.digits import DigitsConfig

    digits = DigitsConfig().build("val")
    batch = digits[range(100)]
    verifier = VERIFIERS.build("class_log_prob").build()
    right = verifier(batch.x, batch.cond)
    wrong = verifier(batch.x, Cond(label=(batch.cond.label + 1) % 10))
    assert right.shape == (100,)
    assert right.max() <= 0
    assert (right > wrong).float().mean() > 0.95
    with pytest.raises(ValueError, match=r"needs cond\.label"):
        verifier(batch.x, Cond())
    with pytest.raises(ValueError, match="one of the shipped classifiers: digits-cnn-v1"):
        VERIFIERS.build({"name": "class_log_prob", "classifier": "nothing"}).build()
