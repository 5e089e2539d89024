"""Searching as a user runs it: by any number of processes, killed and rerun, mistaken."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from genvis.config import read_yaml
from genvis.images import load_images
from tests.end_to_end.test_evaluate import run
from tests.launch import launch

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::UserWarning:genvis"}
STUDY = "configs/digits/search.yaml"
SMALL = ["count=10", "group=3", "sampler.steps=2", "search.n=4", "budgets=null", "png=true"]

# ends the process in the middle of the work, when the lines of the third group get their name
KILLED = """
import os, runpy, signal, sys
def at(event, words):
    if event == "os.rename" and str(words[1]).endswith("parts/000000006.jsonl"):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(at)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def files(folder: Path) -> dict[str, bytes]:
    found = [file for file in folder.rglob("*") if file.is_file() and file.name != ".lock"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in found}


@pytest.fixture(scope="module")
def alone(model: Path) -> tuple[Path, str]:
    """The search by one process, never interrupted, and what it printed."""
    out = model.parent / "alone"
    return out, run("sampling/search.py", model, STUDY, *SMALL, "--out", out)


def test_a_table_tells_what_was_found(alone: tuple[Path, str]) -> None:
    out, told = alone
    title, plain, *rows = told.splitlines()
    assert "held out: log p[digits-judge-v1:" in title
    assert plain.split()[0] == "none"
    assert [row.split()[0] for row in rows] == ["1", "2", "4"]
    assert rows[-1].split()[1:4] == ["4", "8", "4"]  # decodes, evaluations, verifications
    assert len((out / "results.jsonl").read_text().splitlines()) == 10
    images, labels = load_images(out / "samples.npz")
    assert images.shape == (10, 3, 8, 8)
    assert labels is not None
    assert labels.tolist() == list(range(10))


def test_two_processes_write_the_same_files(model: Path, alone: tuple[Path, str]) -> None:
    """To the last byte, pictures too; one process tells."""
    out = model.parent / "two"
    told = launch(2, "sampling/search.py", model, STUDY, *SMALL, "--out", out).stdout
    assert files(out) == files(alone[0])
    assert told == alone[1]


def test_an_oracle_takes_one_process(model: Path) -> None:
    """Its groups know of each other; refused in one line by every process, and nothing is left."""
    oracle = "verifier={name: inception_oracle, extractor: {name: digits-cnn-v1}}"
    out = model.parent / "oracle"
    command = ["sampling/search.py", model, STUDY, *SMALL, oracle, "--out", out]
    with pytest.raises(AssertionError, match="before it: search with one process") as e:
        launch(2, *command)
    assert "Error: [Errno" not in str(e.value)
    assert not out.exists()
    run(*command)


def test_a_killed_search_is_gone_on_with(model: Path, alone: tuple[Path, str]) -> None:
    """kill -9 with half a group on the disk: the same files in the end."""
    out = model.parent / "killed"
    command = ["sampling/search.py", str(model), STUDY, *SMALL, "--out", str(out)]
    started = [sys.executable, "-c", KILLED, *command]
    done = subprocess.run(started, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list((out / "parts").glob("0*.jsonl"))) == 2  # of 4
    assert len(list((out / "parts").glob("0*.safetensors"))) == 3
    assert run(*command) == alone[1]
    assert files(out) == files(alone[0])


def test_a_search_against_its_judge_is_warned_of(model: Path, tmp_path: Path) -> None:
    verifier = json.dumps(read_yaml(STUDY)["verifier"])
    judge = f"judge={{name: 'tests.contrary:ContraryConfig', of: {verifier}}}"
    told = run("sampling/search.py", model, STUDY, *SMALL, judge, "--out", tmp_path / "out")
    last = told.splitlines()[-1]
    assert last.startswith("WARNING: verifier hacking: from plain sampling to budget 4 ")
    assert json.loads((tmp_path / "out" / "search.json").read_text())["warning"] in last


def test_a_pipeline_is_searched_by_its_folder(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from tests.pipelines import consistency

    consistency().save_pretrained(tmp_path / "pipeline")
    small = ["count=3", "sampler={name: pipeline, steps: 1}", "search.n=2", "budgets=null"]
    command = ["sampling/search.py", tmp_path / "pipeline", STUDY, *small]
    told = run(*command, "classes=[1,4]", "--out", tmp_path / "out")
    assert told.splitlines()[-1].split()[:4] == ["2", "2", "2", "2"]
    _, labels = load_images(tmp_path / "out" / "samples.npz")
    assert labels is not None
    assert labels.tolist() == [1, 4, 1]
    assert "needs prompts or classes" in run(*command, "--out", tmp_path / "o", code=2)
    (tmp_path / "named.yaml").write_text(f"name: pipeline\npath: {tmp_path / 'pipeline'}\n")
    command[1] = tmp_path / "named.yaml"
    wrong = "sampler={solver: {name: euler}}"
    told = run(*command, wrong, "classes=[1]", "--out", tmp_path / "o", code=2)
    assert "a sampler for a generator was given" in told


def test_methods_are_compared(model: Path, tmp_path: Path) -> None:
    """Whole images at every budget, particles at their last; twice the same, from what is there."""
    methods = {
        "best of n": [{"name": "best_of_n", "n": 4}],
        "SMC": [{"name": "smc", "n": 2}, {"name": "smc", "n": 4}],
    }
    small = [f"methods={json.dumps(methods)}", "seeds=[0,1]", "study.count=4", "study.group=4"]
    sampler = "study.sampler={solver: {name: ddim, eta: 1.0}, steps: 2}"
    config = "configs/digits/search_study.yaml"
    command = ["sampling/search_study.py", model, config, *small, sampler, "--out", tmp_path / "c"]
    told = run(*command)
    first = [line.split("  ")[0] for line in told.splitlines()[1:]]
    assert first == ["plain sampling", *["best of n"] * 3, "SMC", "SMC"]
    rows = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert [row["evaluations"] for row in rows] == [2, 2, 4, 8, 4, 8]
    assert rows[0]["verifier"] == rows[1]["verifier"]  # the first candidate is a plain sample
    assert all(len(row["judge"]) == 2 for row in rows)
    assert len(list((tmp_path / "c").glob("*/search.json"))) == 2 * 3
    with Image.open(tmp_path / "c" / "comparison.png") as picture:
        picture.load()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "c").glob("*/*.json")}
    assert run(*command) == told
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_mistakes_end_in_one_line(model: Path, tmp_path: Path) -> None:
    """The other mistakes are in tests/laws/test_search_folder.py."""
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    mistakes = [
        (["search.name=best_of"], "'best_of' is not one of best_of_n, "),
        (["search.m=3"], "search: BestOfN has no field 'm'"),
        (["limit.evaluations=1"], "limit.evaluations: 1 buy no image, which takes 2"),
        (["limit.evaluation=1"], "Budget has no field 'evaluation'; did you mean 'evaluations'?"),
        (["search={name: smc}"], "copies under a deterministic solver never come apart"),
        (["judge.classifier=digits-verifier-v1"], "judge must differ from verifier"),
        (["--prompt", "a cat"], "this model takes 10 classes"),
        (["--prompts", tmp_path / "prompts.txt"], "this model takes 10 classes"),
        (["--prompts", tmp_path / "none.txt"], "none.txt: no such file"),
        (["verifier={name: clip_score, path: nowhere}"], "nowhere"),
    ]
    for change, message in mistakes:
        command = ["sampling/search.py", model, STUDY, *SMALL, *change, "--out", tmp_path / "o"]
        told = run(*command, code=2)
        assert message in told, told
        starts = [line for line in told.splitlines() if line.startswith(("error: ", "ConfigError"))]
        assert len(starts) == 1, told
        assert not (tmp_path / "o").exists()
