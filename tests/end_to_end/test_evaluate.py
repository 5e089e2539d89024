"""Evaluation as a user runs it: by any number of processes, killed and rerun, mistaken."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from genvis.checkpoint import load_tensors
from genvis.data.digits import DigitsConfig
from genvis.evaluation.records import append, read
from genvis.images import png, to_uint8
from tests.launch import launch

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::UserWarning:genvis"}
SUITE = "configs/digits/suite.yaml"
SMALL = ["making.count=44", "chunk=10", "measures=[{name: frechet}]", "keep=png"]


# ends the process in the middle of the work, when part 3 is about to get its name
KILLED = """
import os, runpy, signal, sys
def at(event, words):
    if event == "os.rename" and str(words[1]).endswith("samples/parts/000000030.safetensors"):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(at)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*command: object, code: int = 0) -> str:
    """A script in this process: stdout, or stderr where a mistake is expected; the exit status must
    be `code`.
    """
    words, out, err, status = [str(word) for word in command], StringIO(), StringIO(), 0
    with patch.object(sys, "argv", words), redirect_stdout(out), redirect_stderr(err):
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            status = int(end.code or 0)
    assert status == code, err.getvalue()
    return err.getvalue() if code else out.getvalue()


def files(folder: Path) -> dict[str, bytes]:
    """What an evaluation's folder holds of images: records and costs know the time."""
    found = [file for file in (folder / "samples").rglob("*") if file.is_file()]
    return {
        str(file.relative_to(folder)): file.read_bytes() for file in found if file.name != ".lock"
    }


@pytest.fixture(scope="module")
def alone(model: Path) -> Path:
    """The evaluation by one process, never interrupted."""
    out = model.parent / "alone"
    run("sampling/evaluate.py", model, SUITE, *SMALL, "--out", out)
    return out


def distance(told: str) -> str:
    (line,) = (line for line in told.splitlines() if line.startswith("FD["))
    return line


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_processes_gives_the_same_files(
    model: Path, alone: Path, processes: int
) -> None:
    """Every file to the last byte, features included, so statistics too; one process tells."""
    out = model.parent / f"by_{processes}"
    told = launch(processes, "sampling/evaluate.py", model, SUITE, *SMALL, "--out", out).stdout
    assert files(out) == files(alone)
    assert len(list((alone / "samples" / "images").iterdir())) == 44
    assert distance(told) == distance(
        run("sampling/evaluate.py", model, SUITE, *SMALL, "--out", out)
    )
    assert len(read(out / "records.jsonl")) == 2 * 3


def test_a_killed_evaluation_is_gone_on_with(model: Path, alone: Path) -> None:
    """kill -9 with some parts written: the same files in the end, no image twice."""
    out = model.parent / "killed"
    command = ["sampling/evaluate.py", str(model), SUITE, *SMALL, "--out", str(out)]
    started = [sys.executable, "-c", KILLED, *command]
    done = subprocess.run(started, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    parts = out / "samples" / "parts"
    assert len(list(parts.glob("0*"))) == 3  # of 5
    run(*command)
    kept = {name: data for name, data in files(out).items() if "/." not in name}  # half a file
    assert kept == files(alone)
    hashes = [load_tensors(path)["sha256"] for path in sorted(parts.glob("0*"))]
    assert torch.cat(hashes).unique(dim=0).shape == (44, 32)


def test_records_compare_and_refuse(model: Path, alone: Path) -> None:
    records = model.parent / "records.jsonl"
    other, out = model.parent / "other", model.parent / "seven"
    shutil.copytree(model, other)
    evaluate = ["sampling/evaluate.py", other, SUITE, *SMALL, "making.seed=7", "--out", out]
    run(*evaluate, "--records", records)
    append(records, *read(alone / "records.jsonl")[:3])
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert [line["metric"].partition("[")[0] for line in lines[:3]] == [
        "FD",
        "ms_per_image",
        "bytes",
    ]
    first = lines[0]
    assert (first["n"], first["n_reference"], first["keys"]) == (44, 1497, "0..43 of seed 7")
    assert first["interval"][0] < first["interval"][1]
    assert first["config"]["measures"][0]["name"] == "frechet"
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
    assert distance(told).startswith("FD[digits-cnn-v1:")
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
        (
            [tmp_path / "cut", SUITE, "reference=null", "measures=[]"],
            "cut: 2.png: image file is trunc",
        ),
        ([model, SUITE, "reference=null"], "a distance needs a reference"),
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
