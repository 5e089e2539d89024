"""The scripts as a user runs them: a tiny study, and every kind of mistake."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from genvis.config import override, read_yaml, write_yaml
from tests.launch import launch

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::UserWarning:genvis"}
TINY = [
    "steps=30", "batch=32", "checkpoint_every=15", "log_every=10", "optim.warmup=2",
    "model.backbone.width=32", "model.backbone.depth=2", "model.backbone.heads=2",
    "model.sampler.steps=2", "callbacks=[{name: validation, every: 15, count: 64}]",
]  # fmt: skip


def run(script: str, *args: object, code: int = 0, path: Path | None = None) -> str:
    """stdout, or stderr where a mistake is expected; the exit status must be `code`."""
    command = [sys.executable, script, *map(str, args)]
    env = {**ENV, "PYTHONPATH": str(path)} if path else ENV
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    run("train_scripts/train.py", "configs/digits/dit.yaml", "--out", folder, *TINY)
    return folder


@pytest.fixture(scope="module")
def samples(trained: Path) -> Path:
    folder = trained.parent / "samples"
    run("sampling/sample.py", trained, "--out", folder, "count=400", "chunk=64")
    return folder


def test_a_whole_study_in_small(tmp_path: Path) -> None:
    """`make quickstart` with a smaller recipe: all is written, and a second run only reads."""
    configs = tmp_path / "configs"
    shutil.copytree("configs/digits", configs)
    small = override(read_yaml(configs / "search.yaml"), ["search.n=2", "budgets=[1,2]"])
    (configs / "search.yaml").write_text(write_yaml(small))
    few = override(read_yaml(configs / "sampling.yaml"), ["count=400"])
    (configs / "sampling.yaml").write_text(write_yaml(few))
    command = ["sampling/quickstart.py", "--configs", configs, "--folder", tmp_path / "study"]
    first = run(*command, *TINY)
    for subject in ("fp32", "int8", "int4", "held-out", "pixel Gaussian", "best of 2"):
        assert subject in first
    page = (tmp_path / "study" / "report.html").read_text()
    for section in ("Samples", "Training", "Search", "Quantized weights", "How it was made"):
        assert f"<h2>{section}</h2>" in page
    assert "<svg" in page
    assert "data:image/png;base64," in page
    assert 'src="http' not in page
    records = (tmp_path / "study" / "records.jsonl").read_text()
    assert run(*command, *TINY) == first
    assert (tmp_path / "study" / "records.jsonl").read_text() == records
    plan = (configs / "int4.yaml").read_text()
    (configs / "int4.yaml").write_text(plan.replace("bits: 4", "bits: 2"))
    told = run(*command, *TINY, code=2)  # not the old table for another plan
    assert "plans.int4.rules: " in told
    assert "holds a run with another config" in told


def test_one_and_two_processes_write_the_same_samples(trained: Path, samples: Path) -> None:
    two = trained.parent / "two"
    launch(2, "sampling/sample.py", trained, "--out", two, "count=400", "chunk=64")
    a, b = (np.load(folder / "samples.npz") for folder in (samples, two))
    assert (a["arr_0"] == b["arr_0"]).all()
    assert (a["arr_1"] == np.arange(400) % 10).all()


def test_sampling_is_resumed_from_its_parts(trained: Path, samples: Path, tmp_path: Path) -> None:
    from genvis.images import load_npz, save_npz

    out = tmp_path / "resumed"
    out.mkdir()
    shutil.copy(samples / "run.json", out)
    images, labels = load_npz(samples / "samples.npz")
    marked = images[:64].clone()
    marked[0] = 1.0  # a part that is there is kept, not made again
    save_npz(out / "parts" / "000000000.npz", marked, labels[:64])
    run("sampling/sample.py", trained, "--out", out, "count=400", "chunk=64")
    resumed, _ = load_npz(out / "samples.npz")
    assert (resumed[0] == 1).all()
    assert (resumed[1:] == images[1:]).all()
    assert not (out / "parts").exists()


def test_quantize_sample_and_evaluate(trained: Path, samples: Path, tmp_path: Path) -> None:
    import torch

    from genvis.images import save_npz

    told = run(
        "train_scripts/quantize.py", trained, "configs/digits/int4.yaml", "--out", tmp_path / "int4"
    )
    assert "weights changed" in told
    out = tmp_path / "samples"
    run("sampling/sample.py", tmp_path / "int4", "--out", out, "count=400", "chunk=64")
    table = run(
        "sampling/evaluate.py", out, "configs/digits/evaluation.yaml",
        "--against", samples, "--out", tmp_path / "evaluation", "draws=2",
    )  # fmt: skip
    other = tmp_path / "other"
    run("sampling/sample.py", trained, "--out", other, "count=400", "chunk=64", "seed=5")
    evaluate = ["sampling/evaluate.py", out, "configs/digits/evaluation.yaml"]
    assert "not of the same keys: seed" in run(*evaluate, "--against", other, code=2)
    save_npz(tmp_path / "x.npz", torch.zeros(400, 3, 8, 8), torch.zeros(400, dtype=torch.int64))
    told = run(*evaluate, "--against", tmp_path / "x.npz", code=2)
    assert "not pairs: their labels or shapes differ" in told
    assert "FD[digits-cnn-v1:" in table
    assert "pixel Gaussian" in table
    assert len((tmp_path / "evaluation" / "records.jsonl").read_text().splitlines()) == 6


def test_samples_named_like_a_reference_keep_their_row(samples: Path, tmp_path: Path) -> None:
    shutil.copytree(samples, tmp_path / "held-out")
    script, evaluation = map(
        os.path.abspath, ("sampling/evaluate.py", "configs/digits/evaluation.yaml")
    )
    command = [sys.executable, script, "held-out", evaluation, "draws=2"]
    done = subprocess.run(command, env=ENV, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split()[0] for line in done.stdout.splitlines()[2:]]
    assert rows == ["./held-out", "held-out", "pixel", "training"]


def test_convert_takes_an_official_checkpoint(tmp_path: Path) -> None:
    import json

    from safetensors.torch import load_file, save_file

    spec = json.loads(Path("tests/golden/dit/tiny.json").read_text())
    state = load_file("tests/golden/dit/tiny.safetensors")
    official = {k.removeprefix("state/"): v for k, v in state.items() if k.startswith("state/")}
    save_file(official, tmp_path / "dit.safetensors")
    (tmp_path / "official.json").write_text(json.dumps(spec["config"]))
    run(
        "train_scripts/convert.py", "dit", tmp_path / "dit.safetensors", tmp_path / "model",
        "--config", tmp_path / "official.json",
    )  # fmt: skip
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "config.json",
        "model.safetensors",
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.lrr=1"], "ConfigError: optim: Optim has no field 'lrr'; did you mean 'lr'?"),
        (["steps=many"], "ConfigError: steps: should be a valid integer, got 'many'"),
        (["steps=true"], "ConfigError: steps: should be a valid integer, got True"),
        (
            ["model.backbone.name=ditt"],
            "ConfigError: model.backbone.name: 'ditt' is not one of dit,",
        ),
        (["steps=0"], "ConfigError: steps must be at least 1, got 0"),
        (["optim"], "ConfigError: override 'optim': expected KEY=VALUE"),
    ],
)
def test_bad_recipes_end_in_one_line(tmp_path: Path, overrides: list[str], message: str) -> None:
    told = run(
        "train_scripts/train.py", "configs/digits/dit.yaml", "--out", tmp_path / "run",
        *overrides, code=2,
    )  # fmt: skip
    assert told.startswith(message)
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_bad_folders_and_files_end_in_a_line_each(trained: Path, tmp_path: Path) -> None:
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "thesis.tex").write_text("do not touch")
    cut = tmp_path / "cut"
    shutil.copytree(trained / "model", cut)
    data = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[: len(data) // 2])
    other = tmp_path / "other"
    shutil.copytree(trained / "model", other)
    text = (other / "config.json").read_text().replace('"depth": 2', '"depth": 3')
    (other / "config.json").write_text(text)
    search, plan = "configs/digits/search.yaml", "configs/digits/int8.yaml"
    judge = "genvis/features/weights/digits-judge-v1"
    evaluation = "configs/digits/evaluation.yaml"
    features = ["train_scripts/train_features.py", "configs/digits/features/digits-cnn-v1.yaml"]
    mistakes = [
        (["train_scripts/train.py", "no.yaml"], "no.yaml: no such config file"),
        (
            ["train_scripts/train.py", "configs/digits/dit.yaml", "--out", occupied],
            "not empty and not a run folder",
        ),
        (["sampling/sample.py", tmp_path / "none", "--out", tmp_path / "o"], "no such folder"),
        (["sampling/sample.py", cut, "--out", tmp_path / "o"], "truncated or not a safetensors"),
        (["sampling/sample.py", other, "--out", tmp_path / "o"], "does not fit DiT: 10 missing"),
        (["sampling/sample.py", trained, "--out", occupied], "not empty and not a run folder"),
        (["sampling/sample.py", trained, "--out", tmp_path / "o", "count=0"], "at least 1"),
        (["sampling/sample.py", trained, "--out", tmp_path / "o", "classes=[12]"], "in 0..9"),
        (["sampling/search.py", trained, search, "--out", tmp_path / "o", "search.n=0"], "n must"),
        (["sampling/search.py", trained, search, "--out", tmp_path / "o", "budgets=[0]"], "rise"),
        (["train_scripts/quantize.py", trained, search, "--out", tmp_path / "o"], "has no field"),
        (["train_scripts/quantize.py", trained, plan, "--out", occupied], "holds thesis.tex"),
        (["train_scripts/quantize.py", trained, plan, "--out", trained / "model"], "is the model"),
        (["sampling/sample.py", judge, "--out", tmp_path / "o"], "holds a classifier, expected"),
        (["sampling/sample.py", "runs/none", "--out", tmp_path / "o"], "no such folder"),
        (["sampling/sample.py", trained, "--out", tmp_path / "o", "classes=[]"], "at least one"),
        (["sampling/report.py", occupied], "no records.jsonl"),
        (["train_scripts/convert.py", "dit", "no.pt", occupied, "--config", "no.json"], "thesis"),
        ([*features, tmp_path / "o", "--to", occupied], "holds thesis.tex"),
        (["sampling/evaluate.py", cut / "config.json", evaluation], "truncated, or without arr_0"),
    ]
    for command, message in mistakes:
        told = run(*command, code=2)
        assert message in told, command
        starts = ("error: ", "ConfigError: ")
        assert all(line.startswith(starts) for line in told.splitlines()), told
        assert not (tmp_path / "o").exists(), command
    assert [path.name for path in occupied.iterdir()] == ["thesis.tex"]


def test_the_backbone_of_the_guide_trains_and_samples(tmp_path: Path) -> None:
    """The file of docs/extend.md, used by name; from a saved model only if trusted."""
    guide = Path("docs/extend.md").read_text()
    source = guide.split("```python\n")[1].split("```")[0]
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "nets.py").write_text(source)
    backbone = "model.backbone={name: my_lab.nets:ConvConfig}"
    small = ["steps=4", "batch=16", "callbacks=[]", "model.sampler.steps=2"]
    train = ["train_scripts/train.py", "configs/digits/dit.yaml", "--out", tmp_path / "run"]
    run(*train, backbone, *small, path=tmp_path)
    sample = ["sampling/sample.py", tmp_path / "run", "--out", tmp_path / "samples", "count=4"]
    assert "pass trust_code=True" in run(*sample, code=2, path=tmp_path)
    run(*sample, "--trust-code", path=tmp_path)
    assert (tmp_path / "samples" / "grid.png").exists()


def test_a_small_run_learns(trained: Path, tmp_path: Path) -> None:
    """Two hundred steps of a small DiT halve the loss of predicting nothing."""
    from genvis.training.journal import read_journal

    recipe = [*TINY[2:], "steps=200", "batch=64", "model.backbone.width=64"]
    run("train_scripts/train.py", "configs/digits/dit.yaml", "--out", tmp_path / "run", *recipe)
    losses = [line["loss"] for line in read_journal(tmp_path / "run") if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
