"""From a config to a quantized generator: plans given or found, stages that stay, bad input."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from genvis.compression.calibration import Calibration, Recorder, calibration
from genvis.compression.layers import layers_of
from genvis.compression.pipeline import Compression
from genvis.compression.recovery import packed
from genvis.compression.rows import Rows
from genvis.config import ConfigError, build, load, read_yaml
from genvis.evaluation.generated import Run
from genvis.evaluation.sources import Making
from genvis.quant.aware import QuantizeAware
from genvis.quant.execution import Execution, executed
from genvis.quant.modules import quantized_layers
from genvis.quant.plan import Plan
from genvis.quant.report import sqnr, state_bytes
from genvis.samplers.base import load_generator
from genvis.samplers.generator import Generator, GeneratorConfig
from tests.laws.conftest import GENERATOR

BLOCKS = r"blocks\..*"


def w(bits: int, match: str = BLOCKS) -> dict[str, Any]:
    return {"match": match, "weight": {"name": "int", "bits": bits}}


FULL = {"match": r"(x_embedder|t_embedder|final_layer)\..*", "weight": None}
MIXED: dict[str, Any] = {
    "choices": {**{f"w{bits}": w(bits) for bits in range(2, 9)}, "full": FULL},
    "budgets": {"bytes": "w4"},
}
CALIBRATION = {"rows": 16, "calls": 2, "chunk": 8}


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    made = build(GeneratorConfig, GENERATOR).build()
    for parameter in made.net.parameters():
        nn.init.normal_(parameter, std=0.1)
    made.net.eval().requires_grad_(False)
    return made


def compression(**fields: Any) -> Compression:
    return build(Compression, {"calibration": CALIBRATION, **fields})


def called(net: nn.Module, folder: Path) -> torch.Tensor:
    rows = Rows.load(folder / "calibration" / "rows.safetensors")
    return torch.cat([net(*call) for call in rows.calls(8)])


def test_a_plan_without_data_leaves_no_stages(generator: Generator, tmp_path: Path) -> None:
    data = read_yaml("configs/digits/int4.yaml")
    made = build(Compression, data).apply(generator, tmp_path / "stages", "weights")
    assert not (tmp_path / "stages").exists()
    wanted = build(Plan, data).apply(generator.net).state_dict()
    assert all(torch.equal(wanted[name], value) for name, value in made.net.state_dict().items())


@pytest.mark.parametrize(
    "rule",
    [
        {**w(3), "rounding": {"name": "gptq"}},
        {
            **w(8),
            "act": {"name": "static", "format": {"name": "int", "bits": 8, "group": "tensor"}},
        },
    ],
    ids=["gptq", "static"],
)
def test_a_plan_with_data_is_saved_and_loaded(
    generator: Generator, tmp_path: Path, rule: dict[str, Any]
) -> None:
    made = compression(rules=[rule]).apply(generator, tmp_path / "stages", "weights")
    made.save_pretrained(tmp_path / "model")
    again = load_generator(tmp_path / "model")
    wanted = called(generator.net, tmp_path / "stages")
    got = called(made.net, tmp_path / "stages")
    assert torch.equal(called(again.net, tmp_path / "stages"), got)
    assert 5 < sqnr(wanted, got) < 60


def test_a_mixed_plan_keeps_its_budget_and_beats_the_uniform_one(
    generator: Generator, tmp_path: Path
) -> None:
    config, stages = compression(mixed=MIXED), tmp_path / "stages"
    made = config.apply(generator, stages, "weights")
    uniform = compression(rules=[w(4)]).apply(generator, tmp_path / "none", "weights")
    assert state_bytes(made.net) <= state_bytes(uniform.net)
    record = json.loads((stages / "allocation" / "allocation.json").read_text())
    assert set(record["chosen"]) == set(layers_of(generator.net))
    assert len(set(record["chosen"].values())) > 2
    wanted = called(generator.net, stages)
    better, worse = (sqnr(wanted, called(each.net, stages)) for each in (made, uniform))
    assert better > worse
    plan = load(Plan, stages / "allocation" / "plan.yaml")
    assert made.config.changes == (plan,)
    before = {path: path.stat().st_mtime_ns for path in stages.rglob("*") if path.is_file()}
    again = config.apply(generator, stages, "weights")  # all stages are there
    after = {path: path.stat().st_mtime_ns for path in stages.rglob("*") if path.is_file()}
    assert before == after
    assert torch.equal(called(again.net, stages), called(made.net, stages))
    with pytest.raises(ValueError, match="holds a run with another config"):
        config.apply(generator, stages, "other weights")


def test_only_what_the_backends_run_is_chosen(generator: Generator, tmp_path: Path) -> None:
    act = {"name": "dynamic", "format": {"name": "int", "bits": 8, "rule": "asym"}}
    groups_of_16 = {"match": BLOCKS, "weight": {"name": "int", "bits": 4, "group": 16}}
    choices = {"w4g16": groups_of_16, "w4a8": {**w(4), "act": act}, "full": FULL}
    mixed = {
        "choices": choices,
        "budgets": {"bit_operations": 10**12},
        "execution": {"backends": ["int8"]},
    }
    made = compression(mixed=mixed).apply(generator, tmp_path, "weights")
    record = json.loads((tmp_path / "allocation" / "allocation.json").read_text())
    assert set(record["chosen"].values()) == {"w4a8", "full"}
    run = build(Execution, {"backends": ["int8"]})
    assert len(run.place(made.net)) == sum(v == "w4a8" for v in record["chosen"].values())


def test_a_quantized_model_is_sampled_and_evaluated_on_real_kernels(
    generator: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = load(Compression, "configs/quant/w8a8.yaml")
    made = plan.apply(generator, tmp_path, "weights")
    made.save_pretrained(tmp_path / "w8a8")
    with pytest.raises(ValueError, match=r"no back-end runs 2 \(blocks.0.adaLN_modulation.1, "):
        executed(made, ["int8"])
    real = executed(made, ["int8", "fake"])
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "note: int8 runs 8 (blocks.0.attn.qkv, blocks.0.attn.proj, blocks.0.mlp.fc1, ...) of 10 "
        "layers in int8 x int8",
        "note: fake runs 2 (blocks.0.adaLN_modulation.1, blocks.1.adaLN_modulation.1) of 10 layers "
        "in float32: int8 takes quantized inputs",
    ]
    assert real.config == made.config
    run = {"path": str(tmp_path / "w8a8"), "execution": {"backends": ["int8", "fake"]}}
    pixels, others = (
        build(Run, fields).open(Making(count=4), 4)
        for fields in (run, {"path": str(tmp_path / "w8a8")})
    )
    assert pixels.identity["model"] != others.identity["model"]
    gap = pixels.read(range(4))[0].int() - others.read(range(4))[0].int()
    assert gap.abs().max() <= 8  # of 255, where an input on a tie falls to the other side


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give rules, which are a plan, or mixed, which finds one"),
        ({"rules": [w(4)], "mixed": MIXED}, "give rules, which are a plan, or mixed"),
        ({"rules": []}, "rules must not be empty"),
        ({"mixed": {**MIXED, "budgets": {"bytes": "w9"}}}, "budgets.bytes: 'w9' is none of the"),
        ({"mixed": {**MIXED, "budgets": {"byte": 1}}}, "mixed.budgets"),
    ],
)
def test_a_wrong_config_is_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        compression(**fields)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rules": [w(4, "layers.*")]}, r"rules\[0\]: 'layers.\*' matches no Linear or Conv2d"),
        (
            {"rules": [{**w(4, "layers.*"), "rounding": "gptq"}]},
            r"rules\[0\]: 'layers.\*' matches no Linear or Conv2d",
        ),
        ({"mixed": {**MIXED, "budgets": {"bytes": 100}}}, "bytes: 100 is below the least possible"),
        (
            {"mixed": {**MIXED, "choices": {"w4": w(4)}}},
            "choices: none is for the layer 'x_embedder.proj'",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_one_line(
    generator: Generator, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        compression(**fields).apply(generator, tmp_path, "weights")
    assert "\n" not in str(error.value)


# models that are told in words


@pytest.fixture(scope="module")
def told() -> Generator:
    net = {"name": "uvit", "size": 8, "channels": 3, "width": 16, "depth": 2, "heads": 2}
    data = {
        **GENERATOR,
        "backbone": {**net, "num_classes": 0, "text_width": 16, "text_tokens": 16},
        "tokenizer": {"name": "pixels"},
        "text": {"name": "words", "width": 16, "depth": 1, "heads": 2},
        "sampler": {"steps": 2, "guidance": {"scale": 2.0}},
    }
    torch.manual_seed(0)
    made = build(GeneratorConfig, data).build()
    for parameter in made.net.parameters():
        nn.init.normal_(parameter, std=0.1)
    made.net.eval().requires_grad_(False)
    return made


ALL = {"match": ".*", "weight": {"name": "int", "bits": 4}}
STATIC = {"name": "static", "format": {"name": "int", "bits": 8, "rule": "asym", "group": "tensor"}}
TOLD = [
    {"rules": [{**ALL, "act": STATIC, "rounding": "gptq"}]},
    {"mixed": {"choices": {"w4": ALL, "w8": w(8, ".*")}, "budgets": {"bytes": "w4"}}},
]


@pytest.mark.parametrize("fields", TOLD, ids=["rules", "mixed"])
def test_the_backbone_behind_an_encoder_is_quantized_saved_and_loaded(
    told: Generator, fields: dict[str, Any], tmp_path: Path
) -> None:
    calibrated = {**CALIBRATION, "prompts": ["a red heart", "two rings"]}
    small = compression(**fields, calibration=calibrated).apply(told, tmp_path / "stages", "x")
    small.save_pretrained(tmp_path / "small")
    again = load_generator(tmp_path / "small")
    x, t, cond = torch.ones(2, 3, 8, 8), torch.ones(2), told.things(prompts=["a red heart", ""])
    assert torch.equal(again.net(x, t, cond), small.net(x, t, cond))
    assert all(not name.startswith("text.") for name in quantized_layers(small.net))


def test_rows_of_a_told_model_are_what_its_backbone_reads(told: Generator) -> None:
    """The rows that are dropped, with the text that stands for none, give what they gave then."""
    given = Calibration(rows=8, calls=2, chunk=4, prompts=("a red heart", "two rings"))
    cond = replace(told.things(prompts=["two rings"] * 2), drop=torch.tensor([False, True]))
    recorder = Recorder(told.backbone)
    expected = told.having(recorder).net(torch.ones(2, 3, 8, 8), torch.ones(2), cond)
    (call,) = Rows.of(recorder.calls).calls(2)
    assert torch.equal(told.backbone(*call), expected)
    assert len(calibration(told, given)) == 8
    with pytest.raises(ValueError, match="told in words"):
        calibration(told, replace(given, prompts=None))


def test_a_told_model_that_was_trained_through_quantization_is_packed(told: Generator) -> None:
    trained = told.changed(build(QuantizeAware, {"rules": [ALL]}))
    small = packed(trained)
    x, t, cond = torch.ones(2, 3, 8, 8), torch.ones(2), told.things(prompts=["a red heart", ""])
    with torch.no_grad():
        assert torch.equal(small.net(x, t, cond), trained.net(x, t, cond))
    assert state_bytes(small.net) < state_bytes(trained.net)
