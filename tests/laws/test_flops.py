"""FLOPs of a sampler's steps: what a formula gives, however it is guided, forked or limited."""

import pytest
import torch
from torch import Tensor

from genvis.config import build
from genvis.random import HashKeys
from genvis.samplers.flops import counted
from genvis.samplers.generate import generate, labelled, price
from genvis.samplers.generator import Generator, SamplerConfig
from genvis.search.best_of_n import BestOfN
from genvis.search.ledger import Budget, BudgetExceededError, Ledger
from genvis.types import Cond

COND, KEYS = labelled(10, range(3)), HashKeys.of(0, range(3))


def brightness(images: Tensor, cond: Cond) -> Tensor:
    return images.mean((1, 2, 3))


def test_a_step_costs_what_the_network_multiplies(generator: Generator) -> None:
    n, d = 16, 32  # tokens and width
    patches = 2 * n * 4 * d + 2 * n * d * 4
    block = 2 * n * d * (3 * d + d + 8 * d) + 2 * 2 * n * n * d + 2 * d * 6 * d
    time = 2 * 256 * d + 2 * d * d
    network = patches + 2 * block + time + 2 * d * 2 * d
    assert counted(generator.sampler(), COND).flops == (network,) * 4


def test_heun_and_guidance_cost_a_network_each(generator: Generator) -> None:
    (one, *_) = counted(generator.sampler(), COND).flops
    heun = build(SamplerConfig, {"steps": 3, "solver": {"name": "heun"}, "guidance": {"scale": 2}})
    assert counted(generator.sampler(heun), COND).flops == (4 * one, 4 * one, 2 * one)


def test_a_counted_sampler_is_the_sampler(generator: Generator) -> None:
    sampler = generator.sampler()
    known = counted(sampler, COND)
    assert torch.equal(generate(known, COND, KEYS), generate(sampler, COND, KEYS))
    assert price(known).evaluations == price(sampler).evaluations
    assert price(sampler).flops == 0


def test_a_budget_of_flops_holds(generator: Generator) -> None:
    sampler = counted(generator.sampler(), COND)
    brightness.name = "brightness"  # type: ignore[attr-defined]
    one = price(sampler).flops
    ledger = Ledger(Budget(flops=3 * (2 * one) + 1))  # two candidates of three images, and a bit
    found = BestOfN(n=5)(sampler, COND, brightness, KEYS, ledger)  # type: ignore[arg-type]
    assert ledger.spent.flops == 6 * one
    assert found.curve.shape == (3, 2)
    with pytest.raises(BudgetExceededError, match="flops is too small"):
        BestOfN(n=1)(sampler, COND, brightness, KEYS, Ledger(Budget(flops=one)))  # type: ignore[arg-type]
