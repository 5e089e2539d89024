"""The main job's folder and page: no stale result is reused, and a page shows what is there."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from genvis.checkpoint import open_run
from genvis.config import dump
from genvis.evaluation.evaluate import Judge, table, tabulate
from genvis.evaluation.records import Record, append, read, stamped
from genvis.quickstart import Quickstart
from genvis.report import write_report

SHA = "3fa9c1" + "0" * 58
FD = "FD[cnn:3fa9c1]"
TINY = [
    "steps=2", "batch=8", "checkpoint_every=2", "log_every=1", "callbacks=[]",
    "model.backbone.width=32", "model.backbone.depth=1", "model.backbone.heads=2",
]  # fmt: skip


def change(configs: Path, name: str, **values: Any) -> None:
    """Set top-level keys of a YAML file."""
    path = configs / f"{name}.yaml"
    path.write_text(json.dumps({**yaml.safe_load(path.read_text()), **values}))


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """Small in everything: two solver steps, best of three at budgets of two and three."""
    folder = Path(shutil.copytree("configs/digits", tmp_path / "configs"))
    sampler = {"solver": {"name": "euler"}, "steps": 2}
    change(folder, "sampling", count=400, sampler=sampler)
    best_of_3 = {"name": "best_of_n", "n": 3, "chunk": 400}
    change(folder, "search", search=best_of_3, budgets=[2, 3], sampler=sampler)
    change(folder, "evaluation", draws=2)
    (folder / "int8.yaml").unlink()
    return folder


def fd(subject: str, reference: str, **fields: Any) -> Record:
    fixed = {"metric": FD, "extractor": "cnn", "extractor_sha256": SHA, "n_reference": 300}
    given = {"value": 4.0, "n": 300, "floor": 1.0, "draws": 2, "sd": 0.1, **fields}
    return stamped(subject=subject, reference=reference, **fixed, **given)


def test_a_study_is_not_gone_on_with_under_another_config(configs: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    Quickstart.load(configs, 0, TINY).run(out)
    gain = [record for record in read(out / "records.jsonl") if record.metric == "judge_gain"]
    assert [(record.subject, record.reference) for record in gain] == [("best of 3", "best of 2")]
    assert "best of 3 against best of 2, paired" in write_report(out).read_text()
    before = (out / "records.jsonl").read_bytes()
    Quickstart.load(configs, 0, TINY).run(out)
    for name, values, told in (
        ("int4", {"rules": [{"match": ".*", "weight": {"name": "int", "bits": 2}}]}, "plans.int4"),
        ("evaluation", {"draws": 3}, "evaluation.draws: 3 here, 2 there"),
        ("search", {"budgets": [1, 3]}, "study.budgets"),
        ("sampling", {"count": 500}, "sampling.count: 500 here, 400 there"),
    ):
        kept = (configs / f"{name}.yaml").read_text()
        change(configs, name, **values)
        with pytest.raises(ValueError, match="holds a run with another config") as caught:
            Quickstart.load(configs, 0, TINY).run(out)
        assert told in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
        (configs / f"{name}.yaml").write_text(kept)
    with pytest.raises(ValueError, match=r"recipe\.seed: 1 here, 0 there"):
        Quickstart.load(configs, 1, TINY).run(out)
    assert (out / "records.jsonl").read_bytes() == before


def test_what_cannot_be_evaluated_is_refused_before_training(configs: Path, tmp_path: Path) -> None:
    change(configs, "sampling", count=100)
    with pytest.raises(ValueError, match=r"sampling: makes 10 images of class 0, .* needs \d+"):
        Quickstart.load(configs, 0, TINY).run(tmp_path / "study")
    change(configs, "sampling", count=400, classes=[12])
    with pytest.raises(ValueError, match=r"classes must be in 0\.\.9"):
        Quickstart.load(configs, 0, TINY).run(tmp_path / "study")
    change(configs, "sampling", classes=None)
    kept = (configs / "search.yaml").read_text()
    change(configs, "search", budgets=[1, 4])  # of best of 3
    with pytest.raises(ValueError, match="search: must be best_of_n with budgets, the last of"):
        Quickstart.load(configs, 0, TINY).run(tmp_path / "study")
    (configs / "search.yaml").write_text(kept)
    with pytest.raises(ValueError, match=r"int4: blocks\.0\.attn\.qkv: group must divide"):
        Quickstart.load(configs, 0, [*TINY, "model.backbone.width=16"]).run(tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_refused_recipe_may_be_mended_in_place(configs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="16"):
        Quickstart.load(configs, 0, [*TINY, "model.backbone.size=16"]).run(tmp_path / "study")
    study = Quickstart.load(configs, 0, TINY)
    assert open_run(tmp_path / "study", dump(study.recipe))  # free again


def test_samples_named_like_a_reference_are_measured_in_full(configs: Path) -> None:
    judge = Judge(Quickstart.load(configs).judge.evaluation)
    images, labels = judge.held_out.images.clone(), judge.held_out.labels
    for name in ("train", "held-out"):
        found = [record.reference for record in judge.measure(name, images, labels)]
        assert found[:2] == ["train", "held-out"]
    own = judge.measure("held-out", judge.held_out.images, labels)
    assert [record.reference for record in own if record.extractor] == ["train"]


def sections(folder: Path) -> list[str]:
    page = write_report(folder).read_text()
    return [part.partition("</h2>")[0] for part in page.split("<h2>")[1:]]


def test_a_page_shows_only_what_is_there(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    with pytest.raises(ValueError, match=r"no records\.jsonl"):
        write_report(tmp_path)
    records.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        write_report(tmp_path)
    append(records, stamped(subject="fp32", metric="bytes", value=10, n=1))
    assert sections(tmp_path) == ["How it was made"]
    append(records, fd("fp32", "train"), fd("other", "held-out", sd=None))
    assert sections(tmp_path) == ["How it was made"]
    (tmp_path / "search").mkdir()
    rows = [{"budget": n, "spent": {"evaluations": 50 * n}} for n in (1, 2)]
    found = {"verifier": "a", "judge": "b", "count": 10, "rows": rows}
    (tmp_path / "search" / "search.json").write_text(json.dumps(found))
    assert sections(tmp_path) == ["How it was made"]  # a search that nobody measured
    append(records, stamped(subject="best of 2", metric="svm_accuracy", value=0.9, n=10))
    assert sections(tmp_path) == ["Search", "How it was made"]
    append(records, fd("best of 1", "train"))
    append(records, stamped(subject="int8", metric="share_changed", value=0.5, n=1))
    append(records, stamped(subject="int8", metric="bytes", value=5, n=1))
    assert sections(tmp_path) == ["Search", "Quantized weights", "How it was made"]
    (tmp_path / "train").mkdir()
    lines = [{"step": 1, "loss": 0.5}, {"step": 1, "val_loss": 0.4}, {"step": 2, "loss": 0.3}]
    (tmp_path / "train" / "log.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert sections(tmp_path)[0] == "Training"


def test_no_subjects_are_not_all_subjects() -> None:
    records = [fd("a", "train"), fd("b", "train", sd=None)]
    assert tabulate(records, []) == [["images"]]
    assert [row[0] for row in tabulate(records)] == ["images", "a", "b"]
    assert table(records).splitlines()[-1].split() == ["b", "4.000"]


def test_a_wheel_holds_every_shipped_weight() -> None:
    data = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    home = Path("genvis/features")
    packed = {path for pattern in data["genvis.features"] for path in home.glob(pattern)}
    assert packed >= {path for path in (home / "weights").rglob("*") if path.is_file()}


def test_a_suites_records_are_on_the_page(tmp_path: Path) -> None:
    fixed = {
        "extractor": "cnn",
        "extractor_sha256": SHA,
        "n": 50,
        "subject": "runs/a",
        "error": 0.2,
    }
    kid = stamped(metric="KID[cnn:3fa9c1]", value=1.25, reference="real", **fixed)
    one = stamped(metric=FD, value=3.5, reference="real", expected_floor=1.0, **fixed)
    append(tmp_path / "records.jsonl", kid, one)
    page = write_report(tmp_path).read_text()
    assert "<h2>Measures</h2>" in page
    assert "KID[cnn:3fa9c1] to real" in page
    assert "1.25 +- 0.2" in page
    assert "of 50 images" in page
