"""Quality against bits: rows, what is paired with what, bits by formula, resuming, bad input."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from genvis.compression.pipeline import Compression
from genvis.compression.study import QuantStudy, model_bits, study, table
from genvis.config import ConfigError, build, load, override, read_yaml
from genvis.quant.plan import Plan
from genvis.samplers.generator import GeneratorConfig
from tests.laws.conftest import GENERATOR

PLANS = {
    "w8": {"path": "configs/digits/int8.yaml"},
    "w4": {"path": "configs/digits/int8.yaml", "overrides": ["rules.0.weight.bits=4"]},
}
STUDY: dict[str, Any] = {
    "plans": PLANS,
    "evaluation": {
        "extractor": {"name": "classifier", "source": "digits-cnn-v1"},
        "reference": {"name": "dataset", "data": {"name": "digits", "size": 8}},
        "chunk": 20,
    },
    "count": 40,
    "chunk": 20,
    "seeds": [3],
}


def saved(folder: Path, seed: int, changes: Mapping[str, Any] = {}, **fields: Any) -> str:
    torch.manual_seed(seed)
    backbone = {**GENERATOR["backbone"], **fields}
    data = {**GENERATOR, "backbone": backbone, "sampler": {"steps": 2}, **changes}
    made = build(GeneratorConfig, data).build()
    for parameter in made.net.parameters():
        nn.init.normal_(parameter, std=0.1)
    made.save_pretrained(folder)
    return str(folder)


def test_rows_of_every_model_and_plan(tmp_path: Path) -> None:
    models = [
        saved(tmp_path / "small", 0, width=16, depth=1),
        saved(tmp_path / "large", 1, width=32, depth=1),
    ]
    config, out = build(QuantStudy, STUDY), tmp_path / "out"
    rows = study(models, config, out)
    assert [(row["model"], row["plan"]) for row in rows] == [
        (model, plan) for model in ("small", "large") for plan in ("full", "w8", "w4")
    ]
    for full, w8, w4 in (rows[:3], rows[3:]):
        assert full["psnr"] == full["drift"] == full["change"] == []
        assert all(len(row[key]) == 1 for row in (w8, w4) for key in ("fd", "psnr", "drift"))
        assert all(a > b for a, b in zip(w8["psnr"], w4["psnr"], strict=True))
        assert all(a < b for a, b in zip(w8["drift"], w4["drift"], strict=True))
        for row in (w8, w4):  # the change is of the distances in this table
            gaps = [b - a for a, b in zip(full["fd"], row["fd"], strict=True)]
            assert row["change"] == pytest.approx(gaps, rel=1e-6)
        assert full["bits"] > w8["bits"] > w4["bits"]
        assert full["bits"] >= 16 * full["parameters"]  # and its table of positions
    lines = (out / "study.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert (out / "study.md").read_text() == table(rows)
    assert table(rows).count("\n") == 2 + 6
    assert (out / "study.png").stat().st_size > 5000
    before = (out / "small" / "w4" / "model" / "model.safetensors").stat().st_mtime_ns
    assert study(models, config, out) == rows  # nothing is made twice
    assert (out / "small" / "w4" / "model" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds a run with another config: count"):
        study(models, build(QuantStudy, {**STUDY, "count": 41}), out)


def test_bits_are_those_of_the_formats() -> None:
    net = nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 4))
    assert model_bits(net) == 16 * (32 * 8 + 8 + 8 * 4 + 4)
    weight = {"name": "int", "bits": 4, "group": 16}
    small = build(Plan, {"rules": [{"match": "0", "weight": weight}]}).apply(net)
    assert model_bits(small) == 4 * 32 * 8 + 32 * 2 * 8 + 16 * (8 + 8 * 4 + 4)


def test_models_that_read_a_text_are_given_prompts(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a star\ntwo red squares\n")
    text = {"name": "words", "width": 16, "depth": 1, "heads": 2}
    backbone = {**GENERATOR["backbone"], "name": "pixart", "text_width": 16, "text_tokens": 16}
    del backbone["num_classes"]
    model = saved(tmp_path / "told", 0, {"backbone": backbone, "text": text})
    config = build(QuantStudy, {**STUDY, "prompts": str(prompts)})
    full, *_ = study([model], config, tmp_path / "out")
    assert full["family"] == "pixart"
    found = json.loads((tmp_path / "out" / "told" / "w8" / "seed_3" / "prompts.json").read_text())
    assert found == ["a star", "two red squares"] * 20
    prompts.write_text("a star\n")
    with pytest.raises(ValueError, match="holds a run with another config: prompts"):
        study([model], config, tmp_path / "out")
    with pytest.raises(ValueError, match="told: this model is told in words, so give prompts"):
        study([model], build(QuantStudy, STUDY), tmp_path / "other")
    with pytest.raises(ValueError, match="prompts were given, but this model takes 10 classes"):
        study([saved(tmp_path / "net", 0)], config, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("data", ["digits", "shapes"])
def test_the_studies_of_the_configs_are_studies(data: str) -> None:
    config = load(QuantStudy, f"configs/{data}/quant_study.yaml")
    assert list(config.plans) == ["w8a8", "w4a8", "w4a16", "w3a16", "mxfp4"]
    for plan in config.plans.values():
        assert plan.compression().rules is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["seeds=[]"], "seeds must be different, at least one"),
        (["plans={}"], "plans must name at least one, and none 'full'"),
        (["plans.full={path: x}"], "plans must name at least one, and none 'full'"),
        (["count=0"], "count and chunk must be at least 1, got 0 and 20"),
    ],
)
def test_a_wrong_study_is_one_line(changes: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(QuantStudy, override(STUDY, changes))
    assert message in str(error.value)


def test_what_does_not_fit_a_model_is_said_before_any_work(tmp_path: Path) -> None:
    model = saved(tmp_path / "net", 0)
    plans = {"w4": {"path": "configs/quant/w8a8_text.yaml"}}
    with pytest.raises(ValueError, match=r"net, w4: rules\[0\]: .* matches no Linear or Conv2d"):
        study([model], build(QuantStudy, {**STUDY, "plans": plans}), tmp_path / "out")
    with pytest.raises(ValueError, match="models must be at least one, of different names"):
        study([model, model], build(QuantStudy, STUDY), tmp_path / "out")
    plans = {"none": {"path": "configs/none.yaml"}}
    with pytest.raises(ConfigError, match="no such config file"):
        study([model], build(QuantStudy, {**STUDY, "plans": plans}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_plan_of_the_digits_is_read() -> None:
    for path in Path("configs/quant").glob("*.yaml"):
        assert len(build(Plan, read_yaml(path)).rules) >= 2
    mixed = load(Compression, "configs/digits/mixed.yaml").mixed
    assert mixed is not None
    assert mixed.budgets == {"bytes": "w4"}
