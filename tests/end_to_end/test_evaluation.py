"""Evaluation as a user runs it: by any number of processes, killed and rerun, mistaken."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from genvis.checkpoint import load_tensors
from genvis.config import build
from genvis.data.digits import DigitsConfig
from genvis.images import png, to_uint8
from genvis.samplers.generator import GeneratorConfig
from tests.launch import launch

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::UserWarning:genvis"}
GENERATOR = {
    "backbone": {"name": "dit", "size": 8, "channels": 1, "num_classes": 10, "width": 32,
                 "depth": 2, "heads": 4},
    "process": {"name": "linear"},
    "prediction": {"name": "velocity"},
    "tokenizer": {"name": "pixels", "channels": 1},
    "sampler": {"steps": 4},
}  # fmt: skip
SUITE = "configs/digits/suite.yaml"
SMALL = ["making.count=130", "chunk=20", "measures=[{name: frechet}]", "keep=png"]


def run(*command: object, code: int = 0) -> str:
    """stdout, or stderr where a mistake is expected; the exit status must be `code`."""
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def files(folder: Path) -> dict[str, bytes]:
    """What an evaluation's folder holds, but for its lock."""
    found = [file for file in folder.rglob("*") if file.is_file() and file.name != ".lock"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in found}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    made = build(GeneratorConfig, GENERATOR).build()
    for parameter in made.net.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    folder = tmp_path_factory.mktemp("model") / "model"
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def alone(model: Path) -> Path:
    """The evaluation by one process, never interrupted, with its records."""
    out = model.parent / "alone"
    evaluate = ["sampling/evaluate.py", model, SUITE, *SMALL, "--out", out]
    run(*evaluate, "--records", model.parent / "records.jsonl")
    return out


def value(told: str) -> str:
    return next(line for line in told.splitlines() if line.startswith("FD["))


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_gives_the_same_files(
    model: Path, alone: Path, processes: int
) -> None:
    """Every file to the last byte, features included, so statistics too."""
    out = model.parent / f"by_{processes}"
    told = launch(processes, "sampling/evaluate.py", model, SUITE, *SMALL, "--out", out).stdout
    assert files(out) == files(alone)
    assert len(files(alone / "samples" / "images")) == 130
    again = run("sampling/evaluate.py", model, SUITE, *SMALL, "--out", alone)
    assert value(told) == value(again)
    assert len([line for line in told.splitlines() if line.startswith("FD[")]) == 1


def test_a_killed_evaluation_is_gone_on_with(model: Path, alone: Path) -> None:
    """kill -9 with some parts written: the same files in the end, no image twice."""
    out = model.parent / "killed"
    slow = ["sampling/evaluate.py", str(model), SUITE, *SMALL, "--out", str(out)]
    started = subprocess.Popen(
        [sys.executable, *slow], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    parts = out / "samples" / "parts"
    deadline = time.monotonic() + 120
    while not list(parts.glob("0*")) and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(started.pid, signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL
    done = len(list(parts.glob("0*")))
    assert 1 <= done < 7  # of 7 parts
    run(*slow)
    kept = {name: data for name, data in files(out).items() if "/." not in name}  # half a file
    assert kept == files(alone)
    hashes = [load_tensors(path)["sha256"] for path in sorted(parts.glob("0*"))]
    assert torch.cat(hashes).unique(dim=0).shape == (130, 32)


def test_records_compare_and_refuse(model: Path, alone: Path) -> None:
    records = model.parent / "records.jsonl"
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert [line["metric"].partition("[")[0] for line in lines] == ["FD", "ms_per_image", "bytes"]
    first = lines[0]
    assert (first["n"], first["n_reference"], first["keys"]) == (130, 1497, "0..129 of seed 0")
    assert first["interval"][0] < first["interval"][1]
    assert first["config"]["measures"][0]["name"] == "frechet"
    other = model.parent / "other"
    shutil.copytree(model, other)
    evaluate = ["sampling/evaluate.py", other, SUITE, *SMALL, "making.seed=7", "--out"]
    run(*evaluate, model.parent / "seven", "--records", records)
    told = run("sampling/compare.py", records, model, other)
    assert "within the noise" in told  # the same weights by another seed
    assert told.startswith("FD[digits-cnn-v1:")
    assert "there are" in run("sampling/compare.py", records, model, "nobody", code=2)


def test_a_reference_file_is_written_and_used(model: Path, tmp_path: Path) -> None:
    for i, image in enumerate(to_uint8(DigitsConfig().build("val").images)[:60]):
        (tmp_path / "real").mkdir(exist_ok=True)
        (tmp_path / "real" / f"{i:03d}.png").write_bytes(png(image.contiguous()))
    out = tmp_path / "ref.safetensors"
    run("sampling/reference.py", tmp_path / "real", SUITE, "--out", out, "--rows")
    measures = "measures=[{name: frechet},{name: precision_recall}]"
    given = [f"reference={{name: file, path: {out}}}", measures, "--out", tmp_path / "o"]
    told = run("sampling/evaluate.py", tmp_path / "real", SUITE, *given)
    assert value(told).startswith("FD[digits-cnn-v1:")
    assert "(N=60 vs 60" in told
    assert "precision[digits-cnn-v1:973eba] 1.0" in told
    judge = "extractor={name: classifier, source: genvis/features/weights/digits-judge-v1}"
    given[-1] = tmp_path / "p"
    told = run("sampling/evaluate.py", tmp_path / "real", SUITE, judge, *given, code=2)
    assert "a reference of another extractor: extractor digits-cnn-v1 there" in told


def test_mistakes_end_in_one_line(model: Path, tmp_path: Path) -> None:
    """The other mistakes are in tests/laws/test_sources.py and test_suite.py."""
    (tmp_path / "cut").mkdir()
    noise = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    for i in range(4):
        (tmp_path / "cut" / f"{i}.png").write_bytes(png(noise)[: 900 if i == 2 else None])
    inception = f"extractor={{name: inception, path: {tmp_path}}}"
    file = "pt_inception-2015-12-05-6726825d.pth (95,628,359 bytes, sha256 6726825d0af5"
    mistakes = [
        ([tmp_path / "cut", SUITE, "reference=null"], "2.png: truncated, or not an 8-bit image"),
        ([model, SUITE, inception], f"no Inception weights: looked in the path given ({tmp_path})"),
        ([model, SUITE, inception], file),
        ([model, SUITE, "keep=jpg"], "keep: should be 'none', 'png' or 'npz'"),
    ]
    for command, message in mistakes:
        told = run("sampling/evaluate.py", *command, "--out", tmp_path / "o", code=2)
        assert message in told
        starts = [line for line in told.splitlines() if line.startswith(("error: ", "ConfigError"))]
        assert len(starts) == 1, told
        assert told.splitlines()[-1] == starts[0]
        shutil.rmtree(tmp_path / "o", ignore_errors=True)
