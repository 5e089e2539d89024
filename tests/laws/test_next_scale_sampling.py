"""Sampling scale by scale: one answer however it is reached, and states that can be forked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scale_models import (
    CODES,
    GUIDED,
    MVAR,
    SCALES,
    TOKENIZER,
    VAR,
    L,
    finish,
    made,
    saved,
    start,
    whole,
)
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from genvis.config import ConfigError, build
from genvis.random import HashKeys
from genvis.samplers.base import load_generator
from genvis.samplers.decoding import Decoding
from genvis.samplers.folder import Sampling, sample_folder
from genvis.samplers.generate import generate, labelled, price, run, trajectory
from genvis.samplers.guided_scales import GuidedScales, ScaleGuidance
from genvis.samplers.inpainting import known_tokens
from genvis.samplers.next_scale import NextScaleConfig, NextScaleSampler, NextScaleState
from genvis.samplers.scale_generator import ScaleGenerator, ScaleGeneratorConfig
from genvis.tokenizers import TOKENIZERS
from genvis.types import Cond, Cost, repeat, take, to


@pytest.fixture(scope="module", params=["var", "mvar"])
def generator(request: pytest.FixtureRequest) -> ScaleGenerator:
    return made({"var": VAR, "mvar": MVAR}[request.param])


@pytest.fixture(scope="module")
def var() -> ScaleGenerator:
    return made(VAR)


def test_logits_from_a_memory_are_those_of_all_tokens_at_once(generator: ScaleGenerator) -> None:
    for config in (NextScaleConfig(), GUIDED):
        sampler = config.build(generator)
        state, seen = start(sampler), []
        while state.k < sampler.num_steps:
            state = sampler.look(state)
            seen.append(state.kept)
            state = sampler.step(state)
        at_once = sampler.net(torch.cat(state.inputs, 1), state.cond)
        torch.testing.assert_close(torch.cat(seen, 1), at_once, rtol=1e-4, atol=1e-4)
        assert at_once.std() > 0.5  # of what would otherwise say little
        assert state.memory is None
        again = generator.tokenizer.pyramid(state.tokens)
        torch.testing.assert_close(again.inputs, torch.cat(state.inputs, 1))


def test_guidance_grows_with_the_scale() -> None:
    assert ScaleGuidance(scale=2.5).weights(4) == pytest.approx([1, 1.5, 2, 2.5])
    assert ScaleGuidance(scale=3, schedule="constant").weights(3) == [3, 3, 3]
    assert ScaleGuidance(scale=3).weights(1) == [1]


def test_guidance_pushes_away_from_the_logits_without_a_condition(var: ScaleGenerator) -> None:
    cond, x = labelled(10, range(3)), torch.randn(3, L - 1, 4)
    given, free = var.net(x, cond), var.net(x, cond.dropped())
    guided = GuidedScales.of(var.net, SCALES, ScaleGuidance(scale=3.0), "cpu")(x, cond)
    torch.testing.assert_close(guided[:, :1], given[:, :1])
    torch.testing.assert_close(guided[:, 1:5], given[:, 1:5] + (given - free)[:, 1:5])
    torch.testing.assert_close(guided[:, 5:], (3 * given - 2 * free)[:, 5:], rtol=1e-4, atol=1e-4)


def test_a_state_whose_memory_was_dropped_goes_on_the_same(generator: ScaleGenerator) -> None:
    sampler = GUIDED.build(generator)
    state = sampler.step(start(sampler))
    for _ in range(2):
        forgetful = sampler.look(replace(state, memory=None))
        remembered = sampler.look(state)
        torch.testing.assert_close(forgetful.kept, remembered.kept, rtol=1e-4, atol=1e-5)
        ends = [whole(finish(sampler, each)) for each in (forgetful, remembered)]
        assert torch.equal(*ends)
        state = sampler.step(state)


def test_stepping_is_pure_and_states_fork(generator: ScaleGenerator) -> None:
    sampler = GUIDED.build(generator)
    state = sampler.step(start(sampler, rows=4))
    before = state.f_hat.clone()
    once, again = sampler.step(state), sampler.step(sampler.look(sampler.look(state)))
    assert torch.equal(once.f_hat, again.f_hat)
    assert torch.equal(state.f_hat, before)
    rows = torch.tensor([2, 0, 2])
    for forked in (take(state, rows), take(sampler.look(state), rows)):
        assert torch.equal(whole(finish(sampler, forked)), whole(finish(sampler, state))[rows])
    doubled = finish(sampler, repeat(state, 2))
    assert torch.equal(whole(doubled)[::2], whole(doubled)[1::2])


def test_copies_diverge_only_when_rekeyed(generator: ScaleGenerator) -> None:
    sampler = GUIDED.build(generator)
    state, other = start(sampler), HashKeys.of(5, range(3))
    for k in range(sampler.num_steps):
        for now in (state, sampler.look(state)):
            end = whole(finish(sampler, now))
            twin = whole(finish(sampler, sampler.rekey(now, other)))
            past = sampler.ends[k]
            assert torch.equal(end, whole(finish(sampler, now)))
            assert torch.equal(twin[:, :past], end[:, :past])
            assert (twin != end).any(1).all()
            if k == 0:  # the future of other keys, and nothing else
                assert torch.equal(twin, whole(finish(sampler, start(sampler, seed=5))))
        state = sampler.step(state)
    with pytest.raises(ValueError, match=r"nothing after scale 3 of 3 is random, since top_k is 1"):
        sampler.rekey(state, other)
    with pytest.raises(ValueError, match="already made all 3 scales"):
        sampler.step(state)


def test_greedy_decoding_knows_no_noise(var: ScaleGenerator) -> None:
    greedy = NextScaleConfig(decoding=Decoding(top_k=1)).build(var)
    ends = [whole(finish(greedy, start(greedy, seed=seed))) for seed in (0, 1)]
    assert torch.equal(*ends)
    assert not greedy.stochastic
    with pytest.raises(ValueError, match="copies can never diverge"):
        greedy.rekey(start(greedy), HashKeys.of(1, range(3)))
    first = NextScaleConfig(decoding=Decoding(top_k=(0, 1, 1))).build(var)
    assert first.stochastic
    first.rekey(start(first), HashKeys.of(1, range(3)))
    with pytest.raises(ValueError, match="nothing after scale 1 of 3 is random"):
        first.rekey(first.step(start(first)), HashKeys.of(1, range(3)))


def test_settings_may_differ_by_scale(var: ScaleGenerator) -> None:
    """Greedy on the last scale alone: its tokens are the likeliest, the others are drawn."""
    sampler = NextScaleConfig(decoding=Decoding(top_k=(0, 0, 1), temperature=(1, 2, 1))).build(var)
    state = sampler.look(finish_to(sampler, 2))
    assert state.kept is not None
    assert torch.equal(sampler.step(state).tokens[2], state.kept.argmax(-1))
    state = sampler.look(finish_to(sampler, 1))
    assert state.kept is not None
    assert not torch.equal(sampler.step(state).tokens[1], state.kept.argmax(-1))


def finish_to(sampler: NextScaleSampler, k: int) -> NextScaleState:
    state = start(sampler)
    while state.k < k:
        state = sampler.step(state)
    return state


@pytest.mark.parametrize(("config", "passes"), [(NextScaleConfig(), 1), (GUIDED, 2)])
def test_the_price_is_what_the_network_was_asked(
    generator: ScaleGenerator, config: NextScaleConfig, passes: int
) -> None:
    sampler, seen = config.build(generator), []
    handle = generator.net.head.register_forward_hook(lambda *call: seen.append(call[2].shape[1]))
    state = start(sampler)
    for k in range(sampler.num_steps):
        seen.clear()
        state = sampler.step(state)
        assert sampler.cost(k) == Cost(evaluations=len(seen), tokens=sum(seen))
    handle.remove()
    assert price(sampler) == Cost(evaluations=3 * passes, tokens=L * passes, decodes=1)


def test_an_image_does_not_depend_on_its_neighbours(generator: ScaleGenerator) -> None:
    sampler, cond, keys = GUIDED.build(generator), labelled(10, range(7)), HashKeys.of(3, range(7))
    together = generate(sampler, cond, keys, chunk=7)
    parts = [generate(sampler, *take((cond, keys), slice(i, i + 1)), chunk=7) for i in range(7)]
    assert torch.equal(torch.cat(parts), together)  # to the last bit at a fixed chunk
    for chunk in (1, 3):
        other = generate(sampler, cond, keys, chunk=chunk)
        torch.testing.assert_close(other, together, rtol=0, atol=1e-4)
    assert not torch.equal(together[0], together[1])


def test_a_trajectory_shows_every_scale_and_ends_at_the_image(var: ScaleGenerator) -> None:
    sampler, keys, cond = GUIDED.build(var), HashKeys.of(0, range(2)), labelled(10, range(2))
    noise = keys.normal(sampler.noise_shape)
    shown = [*trajectory(sampler, noise, cond, keys)]
    assert torch.equal(shown[-1], run(sampler, noise, cond, keys))
    tokens = finish(sampler, start(sampler, rows=2)).tokens
    for ours, theirs in zip(shown, var.tokenizer.previews(tokens), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_loop_never_reads_a_value_back(generator: ScaleGenerator) -> None:
    """On tensors without values: what waits for a device would fail."""
    config = NextScaleConfig(
        guidance=ScaleGuidance(scale=2.0), decoding=Decoding(top_k=5, top_p=0.9, temperature=1.1)
    )
    sampler = config.build(generator.to("meta"))
    cond = to(Cond(label=torch.zeros(2).long(), known=masked_at(2, 0)), "meta")
    noise = torch.empty(2, L, device="meta")
    assert run(sampler, noise, cond, HashKeys.of(0, range(2))).shape == (2, 3, 8, 8)


def masked_at(rows: int, scale: int) -> tuple[Tensor, Tensor]:
    """Token 7 known on a whole scale."""
    keep = torch.zeros(rows, L, dtype=torch.bool)
    keep[:, sum(p * p for p in SCALES[:scale]) :][:, : SCALES[scale] ** 2] = True
    return torch.full((rows, L), 7), keep


def test_known_tokens_stay_and_the_rest_follows_them(generator: ScaleGenerator) -> None:
    sampler = GUIDED.build(generator)
    keys, cond = HashKeys.of(0, range(3)), labelled(10, range(3))
    noise = keys.normal(sampler.noise_shape)
    free = whole(finish(sampler, start(sampler)))
    values, keep = masked_at(3, 1)
    state = finish(sampler, sampler.init(noise, replace(cond, known=(values, keep)), keys))
    assert torch.equal(whole(state)[keep], values[keep])
    assert torch.equal(whole(state)[:, :1], free[:, :1])  # what came before
    assert not torch.equal(whole(state)[:, 5:], free[:, 5:])  # and after
    again = generator.tokenizer.pyramid(state.tokens)
    torch.testing.assert_close(again.inputs, torch.cat(state.inputs, 1))


def test_an_image_kept_whole_is_its_reconstruction(var: ScaleGenerator) -> None:
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    everywhere, left = torch.ones(2, 8, 8), torch.zeros(2, 8, 8)
    left[:, :, :4] = 1
    values, keep = known_tokens(var.tokenizer, images, everywhere)
    assert keep.all()
    cond = replace(labelled(10, range(2)), known=(values, keep))
    keys = HashKeys.of(0, range(2))
    found = generate(GUIDED.build(var), cond, keys)
    pyramid = var.tokenizer.encode(images)
    torch.testing.assert_close(found, var.tokenizer.previews(pyramid.tokens)[-1])

    values, keep = known_tokens(var.tokenizer, images, left)
    assert keep[0].tolist() == [True, *2 * [True, False], *4 * [True, True, False, False]]
    state = GUIDED.build(var).init(keys.normal((L,)), replace(cond, known=(values, keep)), keys)
    tokens = whole(finish(GUIDED.build(var), state))
    assert torch.equal(tokens[keep], values[keep])
    assert not torch.equal(tokens[~keep], values[~keep])
    _, nothing = known_tokens(var.tokenizer, images, torch.zeros(2, 8, 8, dtype=torch.bool))
    assert nothing.sum(1).tolist() == [1, 1]  # the 1 x 1 map is always the image's


def test_smooth_decoding_mixes_codes_where_noise_decides(var: ScaleGenerator) -> None:
    def f_hat(known: tuple[Tensor, Tensor] | None = None, **decoding: object) -> Tensor:
        sampler = NextScaleConfig(decoding=build(Decoding, decoding)).build(var)
        keys, cond = HashKeys.of(0, range(3)), replace(labelled(10, range(3)), known=known)
        state = finish(sampler, sampler.init(keys.normal((L,)), cond, keys))
        torch.testing.assert_close(sampler.preview(state), var.tokenizer.decode(state.f_hat))
        return state.f_hat

    assert torch.equal(f_hat(smooth=True), f_hat(smooth=True))
    assert not torch.allclose(f_hat(smooth=True), f_hat(smooth=False), atol=1e-2)
    torch.testing.assert_close(f_hat(smooth=True, top_k=1), f_hat(top_k=1))
    values = torch.arange(3 * L).view(3, L) % CODES
    known = (values, torch.ones(3, L, dtype=torch.bool))
    torch.testing.assert_close(f_hat(known, smooth=True), f_hat(known, smooth=False))


def test_smooth_decoding_knows_every_uniform(var: ScaleGenerator) -> None:
    """0 too, which is in [0, 1)."""

    @dataclass(frozen=True)
    class Low(HashKeys):
        def fold(self, *words: int | str) -> "Low":
            return Low(super().fold(*words).h)

        def uniform(self, shape: Sequence[int] = (), device: Any = None) -> Tensor:
            u = super().uniform(shape, device)
            u[..., 0] = 0
            return u

    keys = Low(HashKeys.of(0, range(3)).h)
    sampler = NextScaleConfig(decoding=Decoding(smooth=True, top_k=9)).build(var)
    state = sampler.init(keys.normal((L,)), labelled(10, range(3)), keys)
    assert finish(sampler, state).f_hat.isfinite().all()


def test_bf16_changes_the_network_and_not_the_state(generator: ScaleGenerator) -> None:
    exact, coarse = (
        NextScaleConfig(precision=precision).build(generator) for precision in ("fp32", "bf16")
    )
    one, other = (sampler.look(start(sampler)) for sampler in (exact, coarse))
    assert other.kept is not None
    assert not torch.equal(one.kept, other.kept)
    torch.testing.assert_close(one.kept, other.kept, rtol=0.1, atol=0.3)
    state = coarse.step(coarse.step(other))
    assert {state.f_hat.dtype, state.inputs[0].dtype, coarse.look(state).kept.dtype} == {
        torch.float32
    }
    caches = [leaf for layer in state.memory.layers for leaf in leaves(layer)]
    assert torch.bfloat16 in {leaf.dtype for leaf in caches}


def leaves(value: object) -> list[Tensor]:
    """The tensors of a nest."""
    found: list[Tensor] = []
    to_visit = [value]
    while to_visit:
        item = to_visit.pop()
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, tuple):
            to_visit += item
        elif item is not None:
            to_visit += vars(item).values()
    return found


@pytest.mark.slow
def test_compiled_blocks_sample_the_same(var: ScaleGenerator) -> None:
    """Compiled once for all scales, whose lengths are symbols (a length of one is its own)."""
    graphs = CompileCounter()
    twin = made(VAR)
    for block in twin.net.blocks:
        block.compile(backend=graphs, fullgraph=True, dynamic=True)
    sampler, compiled = GUIDED.build(var), GUIDED.build(twin)
    ends = [whole(finish(each, start(each))) for each in (sampler, compiled)]
    assert torch.equal(*ends)
    assert 0 < graphs.frame_count <= 4


def test_a_folder_is_sampled_whatever_kind_it_holds(var: ScaleGenerator, tmp_path: Path) -> None:
    generator = saved(var, tmp_path / "tokenizer")
    generator.save_pretrained(tmp_path / "model")
    loaded = load_generator(tmp_path / "model")
    assert isinstance(loaded, ScaleGenerator)
    assert loaded.config == generator.config
    assert loaded.num_classes == 10
    sampling = build(Sampling, {"sampler": {"name": "next_scale"}, "count": 5, "chunk": 2})
    images, labels = sample_folder(loaded, sampling, tmp_path / "samples", "x")
    ours, _ = sample_folder(var, sampling, tmp_path / "ours", "x")
    assert torch.equal(images, ours)
    assert labels is not None
    assert labels.tolist() == [0, 1, 2, 3, 4]
    wrong = build(Sampling, {"sampler": {"steps": 2}, "count": 5})
    with pytest.raises(ValueError, match="sampler diffusion is for a generator, this is a scale_g"):
        sample_folder(loaded, wrong, tmp_path / "none", "x")
    assert not (tmp_path / "none").exists()


def test_a_quantized_generator_saves_loads_and_samples(var: ScaleGenerator, tmp_path: Path) -> None:
    from genvis.quant.plan import Plan

    rules = [{"match": "blocks.*", "weight": {"name": "int", "bits": 4}}]
    quantized = saved(var, tmp_path / "tokenizer").changed(build(Plan, {"rules": rules}))
    quantized.save_pretrained(tmp_path / "int4")
    loaded, cond, keys = (
        load_generator(tmp_path / "int4"),
        labelled(10, range(3)),
        HashKeys.of(0, range(3)),
    )
    images = generate(loaded.sampler(), cond, keys)
    assert torch.equal(images, generate(quantized.sampler(), cond, keys))
    assert not torch.equal(images, generate(var.sampler(), cond, keys))


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], where 1 is off, got 0"),
        ({"top_p": [0.9, 1.2, 1]}, r"top_p must be in \(0, 1\]"),
        ({"top_k": -1}, "top_k must be at least 1, or 0 for all codes, got -1"),
        ({"top_k": []}, "top_k must be a number or one for each scale, got none"),
        ({"temperature": 0.0}, "temperature must be positive, got 0"),
        ({"top_k": True}, "should be a valid integer"),
        ({"topk": 1}, "did you mean 'top_k'"),
    ],
)
def test_bad_decoding_is_named(decoding: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Decoding, decoding)


def test_what_does_not_fit_is_named(var: ScaleGenerator) -> None:
    sampler, keys = var.sampler(), HashKeys.of(0, range(2))
    noise, cond = keys.normal((L,)), labelled(10, range(2))
    values, keep = masked_at(2, 0)
    for known, message in (
        ((values[:, 1:], keep), r"of shape \(2, 21\) each, got \(2, 20\) and \(2, 21\)"),
        ((values, keep.float()), "must be int64 and bool, got torch.int64 and torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler.init(noise, replace(cond, known=known), keys)
    with pytest.raises(ValueError, match=r"noise must be \(B, 21\), got \(2, 20\)"):
        sampler.init(noise[:, 1:], cond, keys)
    with pytest.raises(ValueError, match="same rows, got 2 and 3"):
        sampler.init(noise, labelled(10, range(3)), keys)
    with pytest.raises(ValueError, match=r"top_p must have one value for each of 3 scales"):
        NextScaleConfig(decoding=Decoding(top_p=(1.0, 0.5))).build(var)
    with pytest.raises(
        ValueError, match=r"keep must be one value a pixel, \(2, 8, 8\), got \(2, 4"
    ):
        known_tokens(var.tokenizer, torch.zeros(2, 3, 8, 8), torch.zeros(2, 4, 4))
    tokenizer = TOKENIZERS.build(TOKENIZER)
    for backbone, message in (
        (replace(VAR, scales=(1, 3, 4)), r"scales: the backbone is for \(1, 3, 4\), the tokenizer"),
        (replace(VAR, codes=64), "codes: the backbone is for 64, the tokenizer for 32"),
        (replace(VAR, code_width=8), "code_width: the backbone is for 8, the tokenizer for 4"),
    ):
        with pytest.raises(ValueError, match=message):
            ScaleGeneratorConfig(backbone=backbone, tokenizer=tokenizer).build()
    pixels = TOKENIZERS.build({"name": "pixels"})
    with pytest.raises(
        ValueError, match="must be one of token pyramids, such as VAR's, got Pixels"
    ):
        ScaleGeneratorConfig(backbone=VAR, tokenizer=pixels).build()
