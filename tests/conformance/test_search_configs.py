"""A study to copy for every method: it loads, says what it is, and searches a model of its kind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from genvis.config import build, load, override, read_yaml
from genvis.samplers.base import BaseGenerator
from genvis.samplers.generator import GeneratorConfig
from genvis.samplers.scale_generator import ScaleGeneratorConfig
from genvis.search import SEARCHES
from genvis.search.folder import search_folder
from genvis.search.makers import generated
from genvis.search.study import Study

DIGITS = Path("configs/digits")
STUDIES = {path.stem: path for path in sorted((DIGITS / "search").glob("*.yaml"))}
STUDIES["best_of_n"] = DIGITS / "search.yaml"


def generator(name: str) -> BaseGenerator:
    """The digits' DiT, or their VAR with the tokenizer that it is trained on; fresh weights."""
    torch.manual_seed(0)
    if name != "tts_var":
        made = build(GeneratorConfig, told("dit")).build()
    else:
        tokenizer = read_yaml(DIGITS / "vq.yaml")["model"]["tokenizer"]
        made = build(ScaleGeneratorConfig, {**told("var"), "tokenizer": tokenizer}).build()
    for parameter in made.net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    made.net.eval().requires_grad_(False)
    return made


def told(recipe: str) -> dict[str, Any]:
    model: dict[str, Any] = read_yaml(DIGITS / f"{recipe}.yaml")["model"]
    return {key: value for key, value in model.items() if key != "name"}


def test_every_method_has_a_study() -> None:
    assert set(STUDIES) == set(SEARCHES)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_says_what_it_is(name: str) -> None:
    text = STUDIES[name].read_text()
    assert text.startswith("# ")
    assert load(Study, STUDIES[name]).search
    assert read_yaml(STUDIES[name])["search"]["name"] == name
    if name != "best_of_n":
        assert f"configs/digits/search/{name}.yaml \\\n" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_runs(name: str, tmp_path: Path) -> None:
    """One image of it, as it is."""
    small = ["count=1", "group=1", "budgets=null"]
    study = build(Study, override(read_yaml(STUDIES[name]), small))
    search_folder(generated(generator(name), "weights", study), study, tmp_path / "out")
    (line,) = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["score"] <= 0
