"""A user's captioned pictures to a model that does as it is told, through the scripts; and a search
and an evaluation of prompts.
"""

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
from PIL import Image

from genvis.config import build, write_yaml
from genvis.samplers.generator import GeneratorConfig

PAPERS = {"black": 20, "white": 235}
MODEL: dict[str, Any] = {
    "name": "generator",
    "backbone": {
        **{"name": "uvit", "size": 8, "channels": 3, "patch": 4, "width": 32, "depth": 2},
        **{"heads": 2, "num_classes": 0, "text_width": 16, "text_tokens": 8},
    },
    "process": {"name": "linear"},
    "prediction": {"name": "velocity"},
    "tokenizer": {"name": "pixels"},
    "text": {"name": "words", "width": 16, "depth": 1, "heads": 2, "length": 8},
    "sampler": {"steps": 8},
}


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
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on black and white pictures, each of which says so."""
    home = tmp_path_factory.mktemp("text")
    for i in range(40):
        word, value = list(PAPERS.items())[i % 2]
        picture = home / "pictures" / f"{i:02d}.png"
        picture.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(picture)
        picture.with_suffix(".txt").write_text(f"a {word} square\n")
    recipe = {
        "model": MODEL,
        "data": {
            **{"name": "files", "root": str(home / "pictures"), "captions": "txt"},
            "view": {"size": 8},
        },
        "objective": {"name": "denoising", "drop": 0.1},
        "optim": {"lr": 5e-3},
        **{"steps": 120, "batch": 16, "ema": 0.9},
        "callbacks": [{"name": "samples", "every": 120, "rows": 1, "prompts": ["white", "black"]}],
    }
    (home / "recipe.yaml").write_text(write_yaml(recipe))
    run("train_scripts/train.py", home / "recipe.yaml", "--out", home / "run")
    return home / "run"


def brightness(folder: Path) -> np.ndarray:
    """Of every image, in [0, 255]."""
    return np.load(folder / "samples.npz")["arr_0"].mean((1, 2, 3))


def test_it_learned_what_the_words_mean(trained: Path, tmp_path: Path) -> None:
    settings = ["count=16", "sampler.guidance.scale=1.5"]
    prompts = ["--prompt", "a black square", "--prompt", "a white square"]
    run("sampling/sample.py", trained, "--out", tmp_path / "two", *settings, *prompts)
    found = brightness(tmp_path / "two")
    assert found[::2].mean() < 90
    assert found[1::2].mean() > 165
    said = json.loads((tmp_path / "two" / "prompts.json").read_text())
    assert said == ["a black square", "a white square"] * 8
    assert Image.open(trained / "samples" / "step_0000120.png").size[0] > 0


def test_prompts_from_a_file_and_a_negative_one(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a square\n\n  \na white square\n")
    file = ["--prompts", tmp_path / "prompts.txt"]
    run("sampling/sample.py", trained, "--out", tmp_path / "plain", *file)
    assert len(brightness(tmp_path / "plain")) == 2  # a line an image
    against = ["count=8", "sampler.guidance.scale=2"]
    for negative in ("a white square", "a black square"):
        out = tmp_path / negative.split()[1]
        run(
            *("sampling/sample.py", trained, "--out", out, *file, *against),
            f"negative={negative}",
        )
    dark, light = (brightness(tmp_path / name)[::2].mean() for name in ("white", "black"))
    assert dark < light  # of "a square", which says nothing of its color


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--prompt", "a teal square"], "'teal'"),
        (["--prompt", " ".join(["a"] * 7)], "has 7 words, and 6 fit: without 'a'"),
        (["--prompts", "nowhere.txt"], "nowhere.txt: no such file"),
        (["--prompt", "a square", "classes=[1]"], "give classes or prompts"),
        (["negative=a square"], "a negative prompt needs prompts"),
    ],
)
def test_a_mistake_is_one_line(trained: Path, tmp_path: Path, args: list[str], said: str) -> None:
    error = run("sampling/sample.py", trained, "--out", tmp_path / "out", *args, code=2)
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert said in error
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 32 pixels, so that the checker can look."""
    folder = tmp_path_factory.mktemp("model") / "model"
    backbone = {**MODEL["backbone"], "size": 32, "patch": 8}
    plain = {key: value for key, value in MODEL.items() if key != "name"}
    model = build(GeneratorConfig, {**plain, "backbone": backbone}).build()
    torch.manual_seed(0)
    torch.nn.init.normal_(model.net.net.decoder_pred.weight, std=0.1)
    model.save_pretrained(folder)
    return folder


def test_a_search_of_prompts_by_the_checker(untrained: Path, tmp_path: Path) -> None:
    study = {
        "search": {"name": "best_of_n", "n": 3},
        "verifier": {"name": "shapes_checker"},
        "judge": {"name": "shapes_checker", "form": "strict"},
        "sampler": {"steps": 2, "guidance": {"scale": 2.0}},
    }
    (tmp_path / "search.yaml").write_text(write_yaml(study))
    prompts = ["--prompt", "a red heart", "--prompt", "two rings on a gray background"]
    found = ["sampling/search.py", untrained, tmp_path / "search.yaml", "--out", tmp_path / "found"]
    run(*found, *prompts, "negative=a star")
    lines = [json.loads(x) for x in (tmp_path / "found" / "results.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["a red heart", "two rings on a gray background"]
    assert all(line["score"] >= line["plain"]["score"] for line in lines)
    said = json.loads((tmp_path / "found" / "prompts.json").read_text())
    assert said == [line["prompt"] for line in lines]
    no = [*found[:-1], tmp_path / "no"]
    assert "'big'" in run(*no, "--prompt", "a big heart", code=2)
    unguided = run(*no, *prompts, "negative=a star", "sampler.guidance.scale=1", code=2)
    assert "'a star' needs guidance" in unguided


def test_an_evaluation_of_prompts(untrained: Path, tmp_path: Path) -> None:
    suite = {
        "name": "suite",
        "extractor": {"name": "classifier", "source": "shapes-cnn-v1"},
        "measures": [{"name": "shapes_accuracy"}],
        "chunk": 3,
    }
    (tmp_path / "suite.yaml").write_text(write_yaml(suite))
    (tmp_path / "prompts.txt").write_text("a heart\na yellow heart\n")
    made = ["--prompts", tmp_path / "prompts.txt", "count=4", "sampler.steps=1"]
    run("sampling/sample.py", untrained, "--out", tmp_path / "samples", *made)
    table = run(
        *("sampling/evaluate.py", tmp_path / "samples", tmp_path / "suite.yaml"),
        *("--out", tmp_path / "evaluation"),
    )
    path = tmp_path / "evaluation" / "records.jsonl"
    records = {r["metric"]: r for r in map(json.loads, path.read_text().splitlines())}
    names = ("single", "color", "overall", "color held-out", "held out by pair")
    counts = [records[f"accuracy[shapes-checker] {name}"]["n"] for name in names]
    assert counts == [2, 2, 4, 2, 2]
    assert "accuracy[shapes-checker] overall" in table
