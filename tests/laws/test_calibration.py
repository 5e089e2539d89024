"""Calibration along sampling: what is recorded, what is kept, and generators made of it."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scale_models
import torch
from torch import Tensor

from genvis.compression.calibration import (
    Calibration,
    Recorder,
    cached,
    calibrate,
    calibration,
    observed,
    picks,
    quantized,
)
from genvis.compression.rows import Rows
from genvis.config import ConfigError, build, dump
from genvis.quant.activations import Static, uncalibrated
from genvis.quant.gptq import GPTQ
from genvis.quant.integer import Integer
from genvis.quant.observers import Hessian
from genvis.quant.plan import Plan, Rule
from genvis.quant.transforms.scaling import Smooth
from genvis.random import HashKeys
from genvis.samplers.base import BaseGenerator, load_generator
from genvis.samplers.generate import generate, labelled, run
from genvis.samplers.generator import Generator, Guidance, SamplerConfig
from genvis.types import Cond, take

GUIDED = SamplerConfig(steps=6, guidance=Guidance(scale=2.0))
CONFIG = Calibration(sampler=GUIDED, rows=40, calls=4, chunk=6)
TENSOR8 = Integer(bits=8, rule="asym", group="tensor")
PLAN = Plan(
    rules=(
        Rule(
            match=r"blocks\.0\.(mlp|ffn).*",
            weight=Integer(bits=4),
            act=Static(format=TENSOR8),
            transforms=(Smooth(),),
            rounding=GPTQ(),
        ),
        Rule(match=r"blocks\.1.*", weight=Integer(bits=8), act=Static(format=TENSOR8)),
    )
)


def named(rows: Rows) -> dict[str, Tensor]:
    assert len(rows.groups) == 1
    return dict(rows.groups[0])


# denoisers


def test_rows_are_what_the_sampler_calls_the_network_with(generator: Generator) -> None:
    given = named(calibration(generator, CONFIG))
    assert {name: len(leaf) for name, leaf in given.items()} == dict.fromkeys(
        ["0", "1", "2.drop", "2.label"], 40
    )
    recorder = Recorder(generator.net)
    sampler = replace(generator, net=recorder).sampler(GUIDED)
    keys = HashKeys.of(0, range(6)).fold("calibration")
    with torch.no_grad():
        run(sampler, keys.normal(sampler.noise_shape), labelled(10, range(6)), keys)
    real = torch.cat([x for x, _, _ in recorder.calls]).flatten(1)  # (72, C h w)
    apart = (given["0"][:20].flatten(1)[:, None] - real).abs().amax(2)
    assert apart.amin(1).max() < 1e-4
    assert given["0"].unique(dim=0).shape[0] > 35


def test_rows_are_even_over_times_halves_and_images(generator: Generator) -> None:
    given = named(calibration(generator, replace(CONFIG, rows=48)))
    assert set(Counter(given["1"].tolist()).values()) <= {7, 8, 9}  # 48 rows at 6 times
    assert 22 <= int(given["2.drop"].sum()) <= 26
    labels = Counter(given["2.label"].tolist())
    assert set(labels.values()) == {4, 8}  # 12 images of 10 classes, 4 rows each


@pytest.mark.parametrize(("rows", "calls", "total"), [(40, 4, 12), (512, 4, 100), (7, 3, 50)])
def test_picks_are_exactly_as_many_and_even(rows: int, calls: int, total: int) -> None:
    config = Calibration(rows=rows, calls=calls)
    chosen = picks(range(rows), total, config)
    assert sum(len(places) for places in chosen.values()) == rows
    each = Counter(int(i) for places in chosen.values() for i in places)
    assert set(each.values()) <= {calls, rows % calls}
    counts = [len(chosen.get(k, ())) for k in range(total)]
    assert max(counts) - min(counts) <= 3
    assert set(chosen) <= set(range(total))


def test_few_calls_are_all_kept() -> None:
    chosen = picks(range(5), 2, Calibration(rows=9, calls=4))
    assert {k: places.tolist() for k, places in chosen.items()} == {
        0: [0, 1, 2, 3, 4],
        1: [0, 1, 2, 3],
    }


def test_rows_are_a_function_of_the_seed(generator: Generator) -> None:
    first, again = (named(calibration(generator, CONFIG)) for _ in range(2))
    other = named(calibration(generator, replace(CONFIG, seed=1)))
    chunked = named(calibration(generator, replace(CONFIG, chunk=3)))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.allclose(first["0"], other["0"])
    order = [sorted(rows["0"].flatten(1).sum(1).tolist()) for rows in (first, chunked)]
    assert order[0] == pytest.approx(order[1], abs=1e-3)


def test_given_classes_are_taken_in_turn(generator: Generator) -> None:
    rows = calibration(generator, replace(CONFIG, classes=(3, 8)))
    assert named(rows)["2.label"].unique().tolist() == [3, 8]
    rows = calibration(generator, replace(CONFIG, classes=(5,)))
    assert named(rows)["2.label"].unique().tolist() == [5]


# next-scale networks


@pytest.mark.parametrize("backbone", [scale_models.VAR, scale_models.MVAR], ids=["var", "mvar"])
def test_scales_are_recorded_as_one_teacher_forced_call(backbone: Any) -> None:
    generator = scale_models.made(backbone)
    config = Calibration(sampler=scale_models.GUIDED, rows=8, calls=2, chunk=4)
    given = named(calibration(generator, config))
    assert {name: tuple(leaf.shape) for name, leaf in given.items()} == {
        "0": (8, 20, 4),
        "1.drop": (8,),
        "1.label": (8,),
    }
    assert given["1.drop"].sum() == 4
    keys = HashKeys.of(0, range(4)).fold("calibration")
    sampler = generator.sampler(scale_models.GUIDED)
    state = sampler.init(keys.normal(sampler.noise_shape), labelled(10, range(4)), keys)
    while state.k < sampler.num_steps:
        state = sampler.step(state)
    inputs = torch.cat(state.inputs, 1)
    assert torch.equal(given["0"][:4], inputs)
    assert torch.equal(given["0"][4:], inputs)


def test_a_recorder_changes_nothing_also_where_memory_was_dropped() -> None:
    generator = scale_models.made(scale_models.VAR)
    recorder = Recorder(generator.net)
    samplers = [
        replace(generator, net=net).sampler(scale_models.GUIDED)
        for net in (generator.net, recorder)
    ]
    ends = []
    for sampler in samplers:
        state = sampler.step(sampler.step(scale_models.start(sampler)))
        state = replace(state, memory=None)
        ends.append(scale_models.whole(sampler.step(take(state, torch.tensor([0, 2])))))
    assert torch.equal(*ends)
    assert [call[0].shape for call in recorder.calls] == [(2, 20, 4), (2, 20, 4)]


# files


def test_rows_are_cached_and_belong_to_their_weights(generator: Generator, tmp_path: Path) -> None:
    made = cached(generator, CONFIG, tmp_path / "rows", "weights a")
    before = (tmp_path / "rows" / "rows.safetensors").stat().st_mtime_ns
    again = cached(generator, CONFIG, tmp_path / "rows", "weights a")
    assert (tmp_path / "rows" / "rows.safetensors").stat().st_mtime_ns == before
    fresh = named(calibration(generator, CONFIG))
    assert all(
        torch.equal(fresh[k], rows[k]) for rows in (named(made), named(again)) for k in fresh
    )
    assert fresh.keys() == named(again).keys()
    with pytest.raises(
        ValueError, match="another config: source: 'weights b' here, 'weights a' th"
    ):
        cached(generator, CONFIG, tmp_path / "rows", "weights b")
    with pytest.raises(ValueError, match="another config: rows: 41 here, 40 there"):
        cached(generator, replace(CONFIG, rows=41), tmp_path / "rows", "weights a")
    with pytest.raises(ValueError, match=r"another config: sampler\.steps: 4 here, 6 there"):
        cached(generator, replace(CONFIG, sampler=None), tmp_path / "rows", "weights a")
    with pytest.raises(ValueError, match="another config: classes"):
        cached(generator, replace(CONFIG, classes=(3,)), tmp_path / "rows", "weights a")


def test_calls_of_other_shapes_are_kept_apart(tmp_path: Path) -> None:
    text = {n: Cond(text=torch.randn(2, n, 3, generator=torch.Generator())) for n in (4, 7)}
    calls = [(torch.ones(2, 5), torch.zeros(2), text[n]) for n in (4, 7, 4)]
    Rows.of(calls).save(tmp_path / "rows.safetensors")
    rows = Rows.load(tmp_path / "rows.safetensors")
    assert len(rows) == 6
    found = [(len(x), cond.text.shape[1], cond.drop.any()) for x, _, cond in rows.calls(3)]
    assert found == [(3, 4, False), (1, 4, False), (2, 7, False)]
    x, t, cond = next(rows.calls(4))
    assert (x.shape, t.shape) == ((4, 5), (4,))
    assert torch.equal(cond.text, torch.cat([text[4].text, text[4].text]))


# generators made of it

GENERATORS = {
    "denoiser": None,
    "next_scale": scale_models.VAR,
}


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_quantized_generator_saves_loads_and_samples(
    generator: Generator, kind: str, tmp_path: Path
) -> None:
    full: BaseGenerator = generator
    config = CONFIG
    if kind == "next_scale":
        full = scale_models.made(scale_models.VAR)
        config = Calibration(sampler=scale_models.GUIDED, rows=40, chunk=20)
    small = quantized(full, PLAN, calibration(full, config), tokens=200)
    assert uncalibrated(small.net) == []
    small.save_pretrained(tmp_path / kind)
    loaded = load_generator(tmp_path / kind)
    assert loaded.config.changes == (PLAN,)
    loaded = replace(loaded, tokenizer=full.tokenizer)  # which is of random weights
    cond, keys = labelled(10, range(4)), HashKeys.of(7, range(4))
    images = [generate(one.sampler(config.sampler), cond, keys) for one in (full, small, loaded)]
    assert torch.equal(images[1], images[2])
    assert not torch.equal(images[0], images[1])
    waiting = replace(loaded.config.build(), tokenizer=full.tokenizer)
    with pytest.raises(ValueError, match="waits for data"):
        generate(waiting.sampler(config.sampler), cond, keys)


def test_outputs_stay_near_on_what_was_calibrated(generator: Generator) -> None:
    rows = calibration(generator, CONFIG)
    small = quantized(generator, PLAN, rows)
    with torch.no_grad():
        for call in rows.calls(40):
            y, y_hat = generator.net(*call), small.net(*call)
    assert 0 < (y_hat - y).square().sum() < 0.01 * y.square().sum()


def test_ranges_are_those_of_the_layers_inputs(generator: Generator) -> None:
    rows = calibration(generator, CONFIG)
    plan = Plan(rules=(PLAN.rules[1],))
    small = plan.apply(generator.net)
    calibrate(small, rows, chunk=7)
    everything = Plan(rules=(replace(PLAN.rules[1], transforms=(Smooth(),)),))
    seen = observed(small_with_weights(generator, plan), everything, rows, tokens=10**9)
    for name, inputs in seen.items():
        low, high = small.get_buffer(f"{name}.act.range").tolist()
        x = torch.cat([part.flatten(0, -2) for part in inputs])
        assert low == pytest.approx(min(0.0, float(x.min())), abs=1e-5)
        assert high == pytest.approx(max(0.0, float(x.max())), abs=1e-5)


def small_with_weights(generator: Generator, plan: Plan) -> Any:
    """The net as calibration saw it: rounded weights in plain layers, inputs as they are."""
    import copy

    net = copy.deepcopy(generator.net)
    for name in plan.assignments(net):
        layer: Any = net.get_submodule(name)
        if name.startswith("blocks.1"):
            with torch.no_grad():
                layer.weight.copy_(Integer(bits=8).fake(layer.weight))
    return net


def test_hessian_ranges_follow_what_the_output_depends_on(generator: Generator) -> None:
    rows = calibration(generator, CONFIG)
    act = Static(format=Integer(bits=3, group="tensor"), observer=Hessian(steps=50))
    small = Plan(rules=(Rule(match=r"blocks\..*", weight=None, act=act),)).apply(generator.net)
    calibrate(small, rows, seed=3)
    first = {name: b.clone() for name, b in small.named_buffers() if name.endswith("range")}
    assert not any(range.isnan().any() for range in first.values())
    assert all(parameter.grad is None for parameter in small.parameters())
    calibrate(small, rows, seed=3)
    assert all(torch.equal(small.get_buffer(name), range) for name, range in first.items())


@pytest.mark.parametrize("field", ["rows", "calls", "chunk"])
def test_config_refuses_nothing_at_all(field: str) -> None:
    with pytest.raises(ConfigError, match="rows, calls and chunk must be at least 1"):
        build(Calibration, {field: 0})


def test_config_is_plain_data() -> None:
    assert build(Calibration, dump(CONFIG)) == CONFIG
    assert build(Calibration, {}) == Calibration()
