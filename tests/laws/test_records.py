"""Records of measured values: complete, readable by people and programs, never misleading."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from genvis.evaluation import records
from genvis.evaluation.extraction import Features
from genvis.evaluation.records import Record, append, frechet_record, read, stamped, text
from genvis.evaluation.spread import Spread
from genvis.report import write_report

SHA = "3fa9c1" + "0" * 58
NAME = "FD[digits-cnn-v1:3fa9c1]"


def record(**fields: Any) -> Record:
    spread = Spread(torch.tensor([5.3, 6.9, 6.1, 6.1]).double(), 300)
    return frechet_record(
        Features(torch.ones(5, 2), "digits-cnn-v1", SHA), "train", spread, 4.91, **fields
    )


def test_a_record_in_words() -> None:
    line = text(record(beside={"pixel Gaussian": 31.25}))
    assert line == f"{NAME} 6.1 +- 0.7 (N=300 vs 300, 4 draws; floor train-val 4.9; " + (
        "pixel Gaussian 31.2)"
    )
    small = stamped(metric="accuracy", value=0.98567, n=300, interval=(0.97, 0.99), sd=0.004)
    assert text(small) == "accuracy 0.986 +- 0.004 [0.970, 0.990] (N=300)"


def test_records_come_back(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "records.jsonl"
    first = record(config={"draws": 4}, seed=0, keys="0..299 of seed 0")
    second = stamped(metric="psnr", value=31.0, n=8, subject="int8", interval=(30.0, 32.0))
    append(path, first)
    append(path, second, first)
    assert read(path) == [first, second, first]
    stored = json.loads(path.read_text().splitlines()[0])
    assert stored["comparable_to_published"] is False
    assert stored["extractor_sha256"] == SHA
    assert stored["time"].endswith("+00:00")
    assert stored["commit"] is None or len(stored["commit"].removesuffix("-dirty")) == 40


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    append(path, record())
    for wrong in ('{"metric": "psnr"', '{"metric": "psnr"}', "[1]"):
        path.write_text(path.read_text().splitlines()[0] + "\n" + wrong + "\n")
        with pytest.raises(ValueError, match=r"records\.jsonl:2: not a record"):
            read(path)


def test_records_refuse_what_would_mislead() -> None:
    with pytest.raises(ValueError, match="beside its floor"):
        Record(metric=NAME, value=1.0, n=3, extractor="digits-cnn-v1", extractor_sha256=SHA)
    with pytest.raises(ValueError, match="does not name its extractor"):
        Record(
            metric="FD[other:3fa9c1]",
            value=1.0,
            n=3,
            floor=1.0,
            extractor="digits-cnn-v1",
            extractor_sha256=SHA,
        )
    for metric in ("FID", "fid", "FID-50K", "FD"):
        with pytest.raises(ValueError, match="hex digits"):
            Record(metric=metric, value=1.0, n=3, floor=1.0)
    with pytest.raises(ValueError, match="comparable_to_published"):
        stamped(metric="psnr", value=1.0, n=3, comparable_to_published=True)
    with pytest.raises(ValueError, match="finite"):
        stamped(metric="psnr", value=float("nan"), n=3)


def test_two_extractors_share_no_column(tmp_path: Path) -> None:
    """Nor do two numbers of images, or two ways to measure: a page with all of them is drawn."""
    other = {"extractor": "cnn-v2", "extractor_sha256": "4e" * 32, "metric": "FD[cnn-v2:4e4e4e]"}
    common = {"reference": "train", "subject": "a"}
    measured = {**common, "floor": 0.1, "error": 0.2, "n_reference": 300}
    fixed = {"extractor": "digits-cnn-v1", "extractor_sha256": SHA, "metric": NAME}
    append(
        tmp_path / "records.jsonl",
        stamped(value=1.5, n=50, **measured, **fixed),
        record(subject="a"),
        stamped(value=77.0, n=300, draws=4, sd=0.1, floor=2.0, **common, **other),
        stamped(value=2.5, n=60, **measured, **fixed),
        stamped(value=3.5, n=60, resize="area", **measured, **fixed),
    )
    page = write_report(tmp_path).read_text()
    tables = re.findall("<table>.*?</table>", page)
    assert [float(re.search(r"<td>(\d+\.\d+)", one)[1]) for one in tables[:2]] == [6.1, 77.0]
    titles = [f"{NAME} to train, N={n}" for n in ("50", "60", "60, area")]
    (measures,) = (one for one in tables if titles[0] in one)
    assert re.findall("<th>(FD.*?)</th>", measures) == titles
    assert re.findall(r"<td>(\d\.\d) \+-", measures) == ["1.5", "2.5", "3.5"]


def test_the_commit_is_that_of_these_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("git")

    records.commit.cache_clear()
    monkeypatch.setattr("subprocess.run", missing)
    try:
        assert records.commit() is None
    finally:
        records.commit.cache_clear()
