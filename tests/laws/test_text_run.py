"""A text run as a page of prompts by images, and judged on `shapes`."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genvis.data.drawing import render
from genvis.data.scenes import Scene, scene
from genvis.evaluation.gallery import Row, Shown, gallery
from genvis.evaluation.records import read
from genvis.evaluation.text_run import report
from genvis.images import save_npz


def folder_of(path: Path, scenes: list[Scene], prompts: list[str]) -> Path:
    """As sampling leaves it."""
    path.mkdir()
    pixels = torch.from_numpy(np.stack([render(each, 32) for each in scenes])).permute(0, 3, 1, 2)
    save_npz(path / "samples.npz", pixels, None)
    (path / "prompts.json").write_text(json.dumps(prompts))
    return path


def test_truth_is_right_and_others_are_wrong(tmp_path: Path) -> None:
    """Prompts go round: two images of each, the second of the first prompt a wrong one."""
    val, held = [scene(0, "val", i) for i in range(3)], scene(0, "heldout", 0)
    shown, prompts = [*val, held], [each.caption for each in (*val, held)]
    folder = folder_of(tmp_path / "run", [*shown, val[1], *shown[1:]], prompts * 2)
    path, table = report(folder)
    assert table[0] == ["accuracy", "all", "seen", "held out"]
    (overall,) = (row for row in table if row[0] == "overall")
    assert overall[3].startswith("1.000")
    assert not overall[2].startswith("1.000")
    page = path.read_text()
    assert page.count("<td class='prompt'>") == 4
    assert (page.count("class='image right'"), page.count("class='image wrong'")) == (7, 1)
    assert page.count("held out</span>") == 1
    assert "1 of 2" in page
    metrics = {record.metric: record.value for record in read(folder / "records.jsonl")}
    assert metrics["accuracy[shapes-checker] overall held-out"] == 1


def test_a_plain_page_checks_nothing(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run", [scene(0, "val", 0)] * 2, ["a cat", "a dog"])
    with pytest.raises(ValueError, match="'a cat' is no caption of shapes"):
        report(folder)
    path, table = report(folder, plain=True)
    assert table == []
    assert not (folder / "records.jsonl").exists()
    assert "✓" not in path.read_text()
    (folder / "prompts.json").unlink()
    with pytest.raises(ValueError, match=r"no prompts\.json: not a sample folder made of prompts"):
        report(folder)


def test_the_page_is_complete_in_itself_and_safe() -> None:
    """Pictures are inside, to the last bit unless they are large; words are text, never markup."""
    small = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    large = torch.full((3, 600, 300), 70, dtype=torch.uint8)
    prompt = "<b>bold</b> & 'quoted'"
    page = gallery("t<i>tle", [Row(prompt, [Shown(small, "0"), Shown(large, "1", note="<n>'")])])
    assert "<b>" not in page
    assert "<i>" not in page
    assert "<n>" not in page
    assert not re.search(r"(src|href)=['\"](?!data:)", page)
    pictures = [base64.b64decode(x) for x in re.findall(r"base64,([^']+)'", page)]
    first, second = (Image.open(io.BytesIO(each)) for each in pictures)
    assert np.array_equal(np.asarray(first), small.permute(1, 2, 0).numpy())
    assert second.size == (128, 256)
    assert np.asarray(second).min() == np.asarray(second).max() == 70


def test_categories_are_tables_of_their_own() -> None:
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    rows = [Row(p, [Shown(image, "0", right)], c) for p, c, right in (
        ("a", "one", True), ("b", "two", False), ("c", "one", None),
    )]  # fmt: skip
    page = gallery("run", rows, [["x", "y"], ["1", "2"]], "made by hand")
    assert re.findall("<h2>(.*?)</h2>", page) == ["one", "two"]
    assert page.count("<table>") == 3
    assert "made by hand" in page
    assert page.index(">a<") < page.index(">c<") < page.index(">b<")
