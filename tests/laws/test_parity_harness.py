"""The parity harness itself: what differs, is forgotten or is claimed by nobody fails."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.parity.golden_case import Case

HOUSE = Path(__file__).parents[2]
Failed = pytest.fail.Exception


def case(folder: Path, **spec: Any) -> Case:
    path = folder / "toy" / "one.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"kind": "toy", "case": "one", **spec}))
    tensors = {
        "in/x": torch.arange(3.0),
        "out/y": torch.tensor([1.0, 2.0]),
        "out/tokens": torch.tensor([4, 5]),
        "state/w": torch.eye(2),
    }
    save_file(tensors, path.with_suffix(".safetensors"))
    return Case(path)


def test_reads_by_prefix(tmp_path: Path) -> None:
    found = case(tmp_path)
    assert (found.kind, found.name) == ("toy", "one")
    assert list(found.tensors("in/")) == ["x"]
    assert sorted(found.tensors("out/")) == ["tokens", "y"]
    assert torch.equal(found.tensors("state/")["w"], torch.eye(2))


def test_everything_compared_or_omitted(tmp_path: Path) -> None:
    found = case(tmp_path, compare={"*": [1e-6, 0.0]})
    found.compare("y", torch.tensor([1.0, 2.0 + 5e-7]))
    with pytest.raises(Failed, match="tokens: neither compared nor omitted"):
        found.finish()
    found.omit("tok*", "a quirk")
    found.finish()
    assert found.omitted == {"tokens": "a quirk"}
    found.compare("tokens", torch.tensor([4, 5]))
    with pytest.raises(Failed, match="both compared and omitted"):
        found.finish()


@pytest.mark.parametrize(
    ("actual", "why"),
    [
        (torch.tensor([1.0, 2.1]), "not close"),
        (torch.tensor([1.0, float("nan")]), "not close"),
        (torch.tensor([[1.0, 2.0]]), r"shape \(1, 2\), not \(2,\)"),
        (torch.tensor([1.0]), r"shape \(1,\), not \(2,\)"),
    ],
)
def test_mismatches_fail(tmp_path: Path, actual: torch.Tensor, why: str) -> None:
    found = case(tmp_path, compare={"*": [1e-2, 1e-2]})
    found.compare("y", actual)
    found.compare("tokens", torch.tensor([4, 5]))
    with pytest.raises(Failed, match=why):
        found.finish()


def test_tolerances(tmp_path: Path) -> None:
    """The JSON's closest pattern rules over the kind's own table, which fills the gaps."""
    found = case(tmp_path, compare={"y*": [0.5, 0.0], "y": [1e-6, 0.0]})
    assert found.tolerance("y") == (1e-6, 0.0)
    assert found.tolerance("yy") == (0.5, 0.0)
    assert found.tolerance("tokens") is None
    with pytest.raises(Failed, match="must give one"):
        found.compare("tokens", torch.tensor([4, 5]))
    found.compare("tokens", torch.tensor([4, 6]), tolerance=(0.0, 0.0))
    found.compare("y", torch.tensor([1.0, 2.1]), tolerance=(1.0, 1.0))
    with pytest.raises(Failed, match="2 problems"):
        found.finish()


def test_names_that_do_not_exist(tmp_path: Path) -> None:
    found = case(tmp_path)
    with pytest.raises(Failed, match="no output 'z'"):
        found.compare("z", torch.zeros(1), tolerance=(0, 0))
    with pytest.raises(Failed, match="needs an output of this name"):
        found.omit("z", "reason")
    with pytest.raises(Failed, match="and a reason"):
        found.omit("y", "")


def test_outputs_of_the_json_count_too(tmp_path: Path) -> None:
    found = case(tmp_path)
    found.expect("score", [0.5])
    found.omit("y", "reason")
    found.omit("tokens", "reason")
    with pytest.raises(Failed, match="score: neither"):
        found.finish()
    found.compare("score", torch.tensor([0.5]), tolerance=(0, 0))
    found.finish()


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/parity",
        *words,
    ]
    return subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, timeout=120)


def test_a_case_that_nobody_claims_fails(tmp_path: Path) -> None:
    case(tmp_path)
    done = run("--golden", str(tmp_path))
    assert done.returncode == 1, done.stdout
    assert "no test claims toy/one" in done.stdout


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--golden", "no/such/folder"), "--golden no/such/folder: no such folder"),
        (("--golden", "tests/laws"), "--golden tests/laws: holds no KIND/CASE.json"),
        (("--kind", "frechett"), "--kind frechett: "),
    ],
)
def test_wrong_options(words: tuple[str, ...], why: str) -> None:
    done = run(*words)
    assert done.returncode == 4  # pytest's usage error
    assert why in done.stderr
    assert "Traceback" not in done.stderr
