"""Two networks on one pyramid: one is the other's continuation, and nothing else changes hands."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scale_models import GUIDED, MVAR, TOKENIZER, VAR, L, finish, made, saved, start, whole

from genvis.config import ConfigError, build
from genvis.random import HashKeys
from genvis.samplers import SAMPLERS
from genvis.samplers.collaborative import Collaborative, CollaborativeConfig
from genvis.samplers.decoding import Decoding
from genvis.samplers.folder import Sampling, sample_folder
from genvis.samplers.generate import generate, labelled, price
from genvis.samplers.next_scale import NextScaleConfig
from genvis.samplers.scale_generator import ScaleGenerator
from genvis.tokenizers import TOKENIZERS
from genvis.types import Cost

SMALL = replace(VAR, width=16, depth=1)
K = 3


@pytest.fixture(scope="module")
def drafter() -> ScaleGenerator:
    return made(VAR)


@pytest.fixture(scope="module", params=["var", "mvar"])
def refiner(request: pytest.FixtureRequest, drafter: ScaleGenerator) -> ScaleGenerator:
    config = {"var": SMALL, "mvar": replace(MVAR, depth=1)}[request.param]
    return replace(made(config, seed=1), tokenizer=drafter.tokenizer)


def pair(
    drafter: ScaleGenerator,
    refiner: ScaleGenerator,
    steps: int,
    drafting: NextScaleConfig = GUIDED,
    refining: NextScaleConfig = GUIDED,
) -> Collaborative:
    return Collaborative(drafting.build(drafter), refining.build(refiner), steps)


@pytest.mark.parametrize("steps", range(K + 1))
def test_the_same_network_twice_is_that_network(refiner: ScaleGenerator, steps: int) -> None:
    alone, both = GUIDED.build(refiner), pair(refiner, refiner, steps)
    one, two = finish(alone, start(alone)), finish(both, start(both))
    assert torch.equal(whole(one), whole(two))
    torch.testing.assert_close(one.f_hat, two.f_hat)
    assert both.num_steps == K
    assert both.noise_shape == (L,)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_refiner_changes_nothing_before_its_scales(
    drafter: ScaleGenerator, refiner: ScaleGenerator, steps: int
) -> None:
    alone, both = GUIDED.build(drafter), pair(drafter, refiner, steps)
    one, two = finish(alone, start(alone)), finish(both, start(both))
    past = alone.ends[steps]
    assert torch.equal(whole(one)[:, :past], whole(two)[:, :past])
    assert not torch.equal(whole(one)[:, past:], whole(two)[:, past:])


@pytest.mark.parametrize("steps", [1, 2])
def test_the_refiner_reads_what_was_drafted_and_remembers_it_as_its_own(
    drafter: ScaleGenerator, refiner: ScaleGenerator, steps: int
) -> None:
    both = pair(drafter, refiner, steps)
    state, seen = start(both), []
    while state.k < K:
        if state.k == steps:
            assert state.memory is None  # the drafter's is gone before the refiner's is made
        state = both.look(state)
        seen.append(state.kept)
        if steps <= state.k < K - 1:
            assert len(state.memory[0].layers) == 1
        state = both.step(state)
    forced = both.refiner.net(torch.cat(state.inputs, 1), state.cond)[:, both.refiner.ends[steps] :]
    torch.testing.assert_close(torch.cat(seen[steps:], 1), forced, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", range(K + 1))
def test_the_price_is_what_the_networks_were_asked(
    drafter: ScaleGenerator, refiner: ScaleGenerator, steps: int
) -> None:
    both, seen = pair(drafter, refiner, steps), []
    handles = [
        each.net.head.register_forward_hook(lambda *call: seen.append(call[2].shape[1]))
        for each in (drafter, refiner)
    ]
    state = start(both)
    for k in range(K):
        seen.clear()
        state = both.step(state)
        assert both.cost(k) == Cost(evaluations=len(seen), tokens=sum(seen))
    for handle in handles:
        handle.remove()
    twice = both.drafter.ends[steps] if steps < K else 0
    assert price(both) == Cost(evaluations=2 * K, tokens=2 * (L + twice), decodes=1)


def test_copies_diverge_in_either_phase(drafter: ScaleGenerator, refiner: ScaleGenerator) -> None:
    both, other = pair(drafter, refiner, 2), HashKeys.of(5, range(3))
    state = start(both)
    for k in range(K):
        end, twin = (whole(finish(both, each)) for each in (state, both.rekey(state, other)))
        assert torch.equal(end[:, : both.drafter.ends[k]], twin[:, : both.drafter.ends[k]])
        assert (end != twin).any(1).all()
        state = both.step(state)


def test_phases_decode_by_their_own_rules(drafter: ScaleGenerator, refiner: ScaleGenerator) -> None:
    greedy, keys = NextScaleConfig(decoding=Decoding(top_k=1)), HashKeys.of(5, range(3))
    end = pair(drafter, refiner, 1, drafting=greedy)
    assert torch.equal(end.step(start(end)).tokens[0], end.step(start(end, seed=1)).tokens[0])
    assert end.stochastic
    end.rekey(end.step(start(end)), keys)
    begin = pair(drafter, refiner, 1, refining=greedy)
    assert begin.stochastic
    with pytest.raises(ValueError, match="nothing after scale 1 of 3 is random"):
        begin.rekey(begin.step(start(begin)), keys)
    assert not pair(drafter, refiner, 1, greedy, greedy).stochastic


def test_a_folder_refines_what_another_drafts(drafter: ScaleGenerator, tmp_path: Path) -> None:
    ours = saved(drafter, tmp_path / "tokenizer")
    small = replace(made(SMALL, seed=1), tokenizer=ours.tokenizer)
    theirs = replace(small, config=replace(small.config, tokenizer=ours.config.tokenizer))
    theirs.save_pretrained(tmp_path / "small")
    given = {
        "name": "collaborative",
        "refiner": str(tmp_path / "small"),
        "draft_steps": 2,
        "guidance": {"scale": 2.5},
    }
    sampler, keys = ours.sampler(SAMPLERS.build(given)), HashKeys.of(0, range(3))
    expected = generate(pair(ours, theirs, 2), labelled(10, range(3)), keys)
    assert torch.equal(generate(sampler, labelled(10, range(3)), keys), expected)
    sampling = build(Sampling, {"sampler": given, "count": 3, "chunk": 3})
    assert SAMPLERS.build(SAMPLERS.dump(sampling.sampler)) == sampling.sampler
    images, _ = sample_folder(ours, sampling, tmp_path / "samples", "x")
    assert images.shape == expected.shape
    retrained = replace(theirs, net=made(SMALL, seed=2).net)
    retrained.save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match="others"):  # not the images of this refiner
        sample_folder(ours, sampling, tmp_path / "samples", "x")

    other = replace(TOKENIZERS.build(TOKENIZER), kernel=1)
    strangers = {
        "another vocabulary": (replace(SMALL, codes=64), None, "codes is 64, the drafter's is 32"),
        "another schedule": (replace(SMALL, scales=(1, 4)), None, r"scales is \(1, 4\), the draft"),
        "other classes": (replace(SMALL, num_classes=3), None, "num_classes is 3, the drafter's"),
        "another tokenizer": (SMALL, other, "has another tokenizer than the drafter"),
    }
    for name, (backbone, tokenizer, message) in strangers.items():
        quantizer = {"codes": backbone.codes, "width": 4, "scales": [*backbone.scales]}
        fitting = tokenizer or TOKENIZERS.build({**TOKENIZER, "quantizer": quantizer})
        config = replace(ours.config, backbone=backbone, tokenizer=fitting)
        config.build().save_pretrained(tmp_path / name)
        refiner = {**given, "refiner": str(tmp_path / name)}
        with pytest.raises(ValueError, match=message):
            ours.sampler(SAMPLERS.build(refiner))
    with pytest.raises(ValueError, match=r"draft_steps must be in 0..3, the number of scales, got"):
        ours.sampler(SAMPLERS.build({**given, "draft_steps": 4}))
    with pytest.raises(ConfigError, match="draft_steps must be at least 0, got -1"):
        SAMPLERS.build({**given, "draft_steps": -1})
    with pytest.raises(ConfigError, match=r"top_p must be in \(0, 1\], where 1 is off, got 1.5"):
        SAMPLERS.build({**given, "refining": {"top_p": 1.5}})
    with pytest.raises(ValueError, match="holds a tokenizer, expected a scale_generator"):
        ours.sampler(SAMPLERS.build({**given, "refiner": str(tmp_path / "tokenizer")}))
    with pytest.raises(ValueError, match="must have one value for each of 3 scales"):
        ours.sampler(SAMPLERS.build({**given, "refining": {"top_p": [0.9]}}))
    assert isinstance(SAMPLERS.build(given), CollaborativeConfig)
