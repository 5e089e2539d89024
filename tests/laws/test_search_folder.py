"""A search on disk: what its files say, whoever made them and however they were grouped."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scale_models import VAR, made

from genvis.config import ConfigError, build, load
from genvis.images import load_npz, read_npz, to_uint8
from genvis.samplers.generate import generate
from genvis.samplers.generator import Generator, GeneratorConfig
from genvis.search.comparison import Comparison
from genvis.search.folder import search_folder
from genvis.search.job import Job
from genvis.search.ledger import Ledger
from genvis.search.makers import generated
from genvis.search.pictures import nodes
from genvis.search.study import Study
from genvis.types import Cond
from genvis.verifiers import VERIFIERS
from tests.laws.conftest import GENERATOR

JUDGED = {
    "verifier": {"name": "class_log_prob"},
    "judge": {"name": "class_log_prob", "classifier": "digits-judge-v1"},
}
DDIM = {"solver": {"name": "ddim", "eta": 1.0}, "steps": 4}
BEST_OF_8 = {"search": {"name": "best_of_n", "n": 8}, "count": 12, "group": 5}
SEARCHES: dict[str, dict[str, Any]] = {
    "best_of_n": BEST_OF_8,
    "zero_order": {"search": {"name": "zero_order", "iterations": 2}},
    "smc": {"search": {"name": "smc", "n": 4}, "sampler": DDIM},
    "svdd": {"search": {"name": "svdd", "children": 3}, "sampler": DDIM},
    "refined": {
        "search": {"name": "best_of_n", "n": 3},
        "sampler": {"steps": 1},
        "final": {"steps": 4},
    },
}


def study(**fields: Any) -> Study:
    return build(Study, {**JUDGED, "count": 6, "group": 4, **fields})


def searched(generator: Generator, folder: Path, **fields: Any) -> dict[str, Any]:
    wanted = study(**fields)
    return search_folder(generated(generator, "weights", wanted), wanted, folder)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def best(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "best"
    searched(generator, folder, **BEST_OF_8, png=True)
    return folder


def test_the_images_are_those_of_the_search(generator: Generator, best: Path) -> None:
    """Every group's, and the last budget's; those of budget 1 are plain samples."""
    wanted = study(**BEST_OF_8)
    maker = generated(generator, "weights", wanted)
    job = Job.of(wanted, maker)
    for rows in wanted.groups():
        cond, keys = job.given(rows)
        found = wanted.search(maker.sampler, cond, job.verifier, keys, Ledger())
        plain = generate(maker.sampler, cond, keys)
        for name, images in (("samples.npz", found.images), ("budget_001/samples.npz", plain)):
            pixels, labels = read_npz(best / name)
            mine = torch.from_numpy(pixels[rows.start : rows.stop]).permute(0, 3, 1, 2)
            torch.testing.assert_close(mine.int(), to_uint8(images).int(), rtol=0, atol=1)
            assert labels is not None
            assert (labels == np.arange(12) % 10).all()
    assert (read_npz(best / "samples.npz")[0] == read_npz(best / "budget_008/samples.npz")[0]).all()


def test_a_line_tells_all_of_an_image(best: Path) -> None:
    found = lines(best)
    assert [line["image"] for line in found] == list(range(12))
    assert [line["label"] for line in found] == [i % 10 for i in range(12)]
    for line in found:
        rounds = line["rounds"]
        assert (line["method"], line["policy"]) == ("best_of_n", "best score")
        assert [turn["spent"]["evaluations"] for turn in rounds] == [4 * j for j in range(1, 9)]
        scores = [turn["scores"][0] for turn in rounds]
        assert [turn["best"] for turn in rounds] == np.maximum.accumulate(scores).tolist()
        assert line["score"] == max(scores) == scores[line["chosen"]]
        assert all(turn["parents"] == [-1] for turn in rounds)
        assert [s["budget"] for s in line["snapshots"]] == [1, 2, 4, 8]
        assert line["snapshots"][0]["score"] == line["plain"]["score"] == scores[0]
        assert line["snapshots"][-1]["judge"] == line["judge"]
        assert line["spent"]["search"] == {"evaluations": 32, "decodes": 8, "verifications": 8}
        assert line["spent"]["final"] == {}
        assert line["diversity"] > 0
    assert len({line["key"] for line in found}) == 12


def test_the_summary_is_the_lines(best: Path) -> None:
    found, each = json.loads((best / "search.json").read_text()), lines(best)
    assert found["unit"] == {"evaluations": 4}
    assert [row["budget"] for row in found["rows"]] == [1, 2, 4, 8]
    for k, row in enumerate(found["rows"]):
        assert row["spent"] == {
            "evaluations": 12 * 4 * row["budget"],
            "decodes": 12 * row["budget"],
            "verifications": 12 * row["budget"],
        }
        assert row["verifier"] == [line["snapshots"][k]["score"] for line in each]
        assert row["judge"] == [line["snapshots"][k]["judge"] for line in each]
        assert row["diversity"] > 0
    assert found["plain"]["verifier"] == found["rows"][0]["verifier"]


def test_the_judge_sees_what_the_file_holds(best: Path) -> None:
    judge = VERIFIERS.build(JUDGED["judge"]).build()
    images, labels = load_npz(best / "samples.npz")
    told = torch.tensor([line["judge"] for line in lines(best)])
    torch.testing.assert_close(judge(images, Cond(label=labels)), told, rtol=0, atol=1e-5)


def test_pictures_are_pictures(best: Path) -> None:
    for name in ("grid.png", "scores.png", "tree.png", "budget_004/grid.png", "images/000011.png"):
        with Image.open(best / name) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert min(picture.size) >= 8
            assert len(picture.convert("RGB").getcolors(2**24)) > 2
    assert len(list((best / "images").iterdir())) == 12
    assert not (best / "parts").exists()


def test_groups_do_not_matter(generator: Generator, best: Path, tmp_path: Path) -> None:
    searched(generator, tmp_path / "one", **{**BEST_OF_8, "group": 1})
    for ours, theirs in zip(lines(tmp_path / "one"), lines(best), strict=True):
        assert ours["chosen"] == theirs["chosen"]
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-4)
        assert ours["spent"] == theirs["spent"]


@pytest.mark.parametrize("name", SEARCHES)
def test_a_limit_is_never_passed(generator: Generator, tmp_path: Path, name: str) -> None:
    fields = {**SEARCHES[name], "count": 3, "group": 2}
    free = searched(generator, tmp_path / "free", **fields)
    whole = free["rows"][-1]["spent"]
    for kind in ("evaluations", "verifications"):
        most = max(4 if kind == "evaluations" else 1, whole[kind] // 4)  # three quarters, an image
        found = searched(generator, tmp_path / kind, **fields, limit={kind: most})
        spent = found["rows"][-1]["spent"]
        assert 0 < spent[kind] <= 3 * most < whole[kind]
        assert len(lines(tmp_path / kind)) == 3


@pytest.mark.parametrize("name", SEARCHES)
def test_a_line_leads_back_to_its_root(generator: Generator, tmp_path: Path, name: str) -> None:
    searched(generator, tmp_path / "out", **SEARCHES[name])
    for line in lines(tmp_path / "out"):
        places, parents = nodes(line["rounds"])
        assert all(-1 <= parent < child for child, parent in enumerate(parents))
        assert places[line["chosen"]][1] == line["score"]
        assert line["snapshots"][-1]["policy"] == line["policy"]


def test_what_is_made_again_is_told_apart(generator: Generator, tmp_path: Path) -> None:
    searched(generator, tmp_path / "out", **SEARCHES["refined"])
    for line in lines(tmp_path / "out"):
        assert line["spent"]["search"] == {"evaluations": 3, "decodes": 3, "verifications": 3}
        assert line["spent"]["final"] == {"evaluations": 4, "decodes": 1, "verifications": 1}
        assert line["searched"] == max(turn["scores"][0] for turn in line["rounds"][:-1])
        assert line["searched"] != line["score"]


def test_what_no_search_gives_stands_beside(generator: Generator, tmp_path: Path) -> None:
    """Particles never make plain samples: these are made besides, and cost the search nothing."""
    found = searched(generator, tmp_path / "out", **SEARCHES["smc"])
    wanted = study(**SEARCHES["smc"])
    maker = generated(generator, "weights", wanted)
    job = Job.of(wanted, maker)
    cond, keys = job.given(range(6))
    scores = job.verifier(generate(maker.sampler, cond, keys), cond)
    torch.testing.assert_close(scores, torch.tensor(found["plain"]["verifier"]), rtol=0, atol=1e-4)
    assert found["rows"][-1]["spent"]["evaluations"] == 6 * 4 * 4


def test_flops_are_counted_where_asked(generator: Generator, tmp_path: Path) -> None:
    found = searched(generator, tmp_path / "out", **BEST_OF_8, flops=True)
    first, last = found["rows"][0]["spent"], found["rows"][-1]["spent"]
    assert last["flops"] == 8 * first["flops"] > 0


def test_next_scale_models_are_counted_in_tokens(tmp_path: Path) -> None:
    """Candidates that nobody scored are in the tree too, and lines lead through them."""
    search = {
        "name": "tts_var", "population": [4, 2, 2], "cluster": [0], "resample": [1],
        "features": {"name": "patches", "grid": 2},
    }  # fmt: skip
    found = searched(made(VAR), tmp_path / "out", search=search, count=3)
    tokens = 1 + 4 + 16
    assert found["unit"] == {"tokens": tokens}
    (row,) = found["rows"][-1:]
    assert row["spent"]["tokens"] == 3 * (4 * 1 + 4 * 4 + 2 * 16)
    for line in lines(tmp_path / "out"):
        assert line["rounds"][0]["scores"] is None
        places, parents = nodes(line["rounds"])
        assert len(places) < len(parents)
        assert places[line["chosen"]][1] == line["score"]
    with Image.open(tmp_path / "out" / "tree.png") as picture:
        picture.load()


def test_the_search_stops_at_the_last_budget(generator: Generator, tmp_path: Path) -> None:
    found = searched(generator, tmp_path / "out", **BEST_OF_8, budgets=[2, 3])
    assert [row["budget"] for row in found["rows"]] == [2, 3]
    assert found["rows"][-1]["spent"]["evaluations"] == 12 * 12


def test_a_finished_folder_is_only_read(generator: Generator, best: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in best.rglob("*") if path.is_file()}
    searched(generator, best, **BEST_OF_8, png=True)
    after = {path: path.stat().st_mtime_ns for path in best.rglob("*") if path.is_file()}
    assert after == before
    with pytest.raises(ValueError, match=r"holds a run with another config: search\.n: 9 here"):
        searched(
            generator, best, **{**BEST_OF_8, "search": {"name": "best_of_n", "n": 9}}, png=True
        )


def test_shipped_studies_load() -> None:
    assert load(Study, "configs/digits/search.yaml")
    comparisons = sorted(Path("configs").glob("*/search_study*.yaml"))
    assert len(comparisons) >= 5
    for path in comparisons:
        assert load(Comparison, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"search": {"name": "best_of_n", "n": 0}}, "search: n must be at least 1"),
        ({"search": {"name": "best_of"}}, "'best_of' is not one of .*did you mean 'best_of_n'"),
        ({"budgets": [0, 1]}, "budgets must rise from at least 1"),
        ({"budgets": []}, "budgets must rise from at least 1"),
        ({"budgets": [4, 2]}, "budgets must rise from at least 1"),
        ({"limit": {"evaluations": 0}}, "a budget of 0 evaluations buys nothing"),
        ({"count": 0}, "count and group must be at least 1"),
        ({"classes": [1], "prompts": ["a"]}, "classes or prompts, not both"),
        ({"prompts": []}, "must name at least one"),
        ({"judge": {"name": "class_log_prob"}}, "judge must differ from verifier"),
    ],
)
def test_bad_studies_are_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    given = {**JUDGED, "search": {"name": "best_of_n"}}
    build(Study, given)
    with pytest.raises(ConfigError, match=message) as caught:
        build(Study, {**given, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limit": {"evaluations": 3}}, "limit.evaluations: 3 buy no image, which takes 4"),
        ({"limit": {"flops": 1000}}, "limit.flops: 1000 buy no image, which takes 3629056"),
        ({"classes": [12]}, r"classes must be in 0\.\.9, got \[12\]"),
        ({"prompts": ["a cat"]}, "prompts were given, but this model takes 10 classes"),
        (
            {"judge": {"name": "cached", "of": {"name": "class_log_prob"}}},
            "judge must differ from verifier, but both are log p",
        ),
        ({"search": {"name": "smc"}}, "never come apart"),
        (
            {"search": {"name": "smc"}, "sampler": DDIM, "limit": {"evaluations": 20}},
            "budget of 80 evaluations is too small: .*, for a group of 4 images",
        ),
    ],
)
def test_what_cannot_be_searched_is_said_before_any_image(
    generator: Generator, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        searched(generator, tmp_path / "out", **{"search": {"name": "best_of_n"}, **change})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_verifier_without_its_label_is_refused(tmp_path: Path) -> None:
    backbone = {
        "name": "uvit", "size": 8, "channels": 1, "patch": 2, "width": 32, "depth": 2, "heads": 2,
        "num_classes": 0,
    }  # fmt: skip
    free = build(GeneratorConfig, {**GENERATOR, "backbone": backbone}).build()
    with pytest.raises(ValueError, match=r"needs cond\.label"):
        searched(free, tmp_path / "out", search={"name": "best_of_n"})
    with pytest.raises(ValueError, match=r"classes must be in none: this model has no classes"):
        searched(free, tmp_path / "out", search={"name": "best_of_n"}, classes=[1])
    assert not (tmp_path / "out").exists()
