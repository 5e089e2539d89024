"""Next-scale models through the scripts of all models: sampled, refined, searched, evaluated."""

import json
import runpy
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from genvis.backbones import SCALE_BACKBONES
from genvis.samplers.scale_generator import ScaleGeneratorConfig
from genvis.tokenizers import TOKENIZERS
from genvis.tokenizers.model import TokenizerModelConfig

SCALES = [1, 2, 4]
TOKENIZER = {
    "name": "multi_scale_vq",
    "nets": {"width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4},
    "quantizer": {"codes": 32, "width": 4, "scales": SCALES},
}
SIZES = {"scales": SCALES, "codes": 32, "code_width": 4, "num_classes": 10, "heads": 2}


def run(script: str, *args: object, code: int = 0) -> str:
    """stdout, or stderr where a mistake is expected; the exit status must be `code`."""
    out, err, status = StringIO(), StringIO(), 0
    with (
        patch("sys.argv", [script, *map(str, args)]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as done:
            status = int(done.code or 0)
    assert status == code, err.getvalue()
    return err.getvalue() if code else out.getvalue()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, a VAR and a smaller M-VAR on it; untrained, but not indifferent."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    plain = TokenizerModelConfig(tokenizer=TOKENIZERS.build(TOKENIZER)).build()
    torch.nn.init.normal_(plain.net.quantize.embedding.weight)
    plain.save_pretrained(folder / "tokenizer")
    tokenizer = TOKENIZERS.build({"name": "pretrained", "path": str(folder / "tokenizer")})
    for name, fields in {
        "var": {"name": "var", "width": 32, "depth": 2},
        "mvar": {"name": "mvar", "width": 16, "depth": 1, "scan_head": 16},
    }.items():
        backbone = SCALE_BACKBONES.build({**SIZES, **fields})
        generator = ScaleGeneratorConfig(backbone=backbone, tokenizer=tokenizer).build()
        torch.nn.init.normal_(generator.net.head.weight, std=0.2)
        generator.save_pretrained(folder / name)
    return folder


def test_sample_refine_search_and_evaluate(models: Path, tmp_path: Path) -> None:
    def samples(name: str) -> Any:
        return np.load(tmp_path / name / "samples.npz")

    sample = ["sampling/sample.py", models / "var", "count=400", "chunk=100", "--out"]
    settings = ["sampler.guidance.scale=2", "sampler.decoding.top_k=[0,8,4]"]
    run(*sample, tmp_path / "samples", "--steps", *settings)
    assert samples("samples")["arr_0"].shape == (400, 8, 8, 3)
    assert (samples("samples")["arr_1"] == np.arange(400) % 10).all()
    assert (tmp_path / "samples" / "steps.png").stat().st_size > 0
    record = json.loads((tmp_path / "samples" / "run.json").read_text())["config"]["sampler"]
    assert record["name"] == "next_scale"

    phases = "drafting: {top_k: [0, 8, 4]}, refining: {top_k: 3}, guidance: {scale: 2}"
    sampler = f"name: collaborative, refiner: {models / 'mvar'}, draft_steps: 2, {phases}"
    run(*sample, tmp_path / "refined", f"sampler={{{sampler}}}")
    assert (samples("refined")["arr_0"] != samples("samples")["arr_0"]).any()

    table = run(
        "sampling/evaluate.py", tmp_path / "samples", "configs/digits/evaluation.yaml",
        "draws=2", "--against", tmp_path / "refined", "--out", tmp_path / "evaluation",
        code=2,
    )  # fmt: skip
    assert "not of the same keys: sampler" in table
    suite = ["configs/digits/suite.yaml", "making.count=44", "measures=[{name: frechet}]"]
    table = run("sampling/evaluate.py", models / "var", *suite, "--out", tmp_path / "suite")
    assert "FD[digits-cnn-v1:" in table

    search = ["sampling/search.py", models / "var", "configs/digits/search.yaml"]
    few = ["search.n=3", "budgets=[1,3]", "count=20", "group=20"]
    run(*search, "sampler=null", *few, "--out", tmp_path / "search")
    rows = json.loads((tmp_path / "search" / "search.json").read_text())["rows"]
    assert [row["spent"]["tokens"] for row in rows] == [20 * 21, 3 * 20 * 21]
    first, last = (np.mean(row["verifier"]) for row in rows)
    assert last > first


def test_mistakes_end_in_one_line(models: Path, tmp_path: Path) -> None:
    sample = ["sampling/sample.py", models / "var", "--out", tmp_path / "o"]
    suite, search = "configs/digits/suite.yaml", "configs/digits/search.yaml"
    refined = f"name: collaborative, refiner: {models / 'mvar'}, draft_steps: "
    mistakes = [
        ([*sample, "sampler.decoding.top_p=1.5"], "top_p must be in (0, 1], where 1 is off"),
        ([*sample, "sampler.decoding.top_k=[1,2]"], "top_k must have one value for each of 3 scal"),
        ([*sample, "sampler={steps: 3}"], "sampler diffusion is for a generator, this is a scale"),
        ([*sample, f"sampler={{{refined}4}}"], "draft_steps must be in 0..3"),
        ([*sample, "sampler={name: colaborative}"], "did you mean 'collaborative'?"),
        (["sampling/search.py", models / "var", search, "--out", tmp_path / "o"], "is for a gener"),
        (
            ["sampling/evaluate.py", models / "var", suite, "making.sampler={steps: 2}"],
            "sampler diffusion is for a generator",
        ),
        (
            ["sampling/sample.py", models / "tokenizer", "--out", tmp_path / "o"],
            "holds a tokenizer, expected a generator or scale_generator",
        ),
    ]
    for command, message in mistakes:
        told = run(*map(str, command), code=2)
        assert message in told, command
        assert len(told.splitlines()) == 1, told
        assert not (tmp_path / "o").exists(), command


def test_a_pair_that_does_not_fit_is_refused(models: Path, tmp_path: Path) -> None:
    data = json.loads((models / "var" / "config.json").read_text())
    data["backbone"]["scales"] = [1, 3, 4]
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(data))
    (folder / "model.safetensors").write_bytes((models / "var" / "model.safetensors").read_bytes())
    told = run("sampling/sample.py", folder, "--out", tmp_path / "o", code=2)
    assert "scales: the backbone is for (1, 3, 4), the tokenizer for (1, 2, 4)" in told
