"""Benchmarks of prompts: published files in, their folders out, their scripts' results back."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from genvis.config import config
from genvis.evaluation.benchmarks import Benchmark, GenEval, T2ICompBench, tally
from genvis.evaluation.layout import lay_out, show
from genvis.evaluation.sources import Making
from genvis.types import Cond

LINES = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"},
    {"tag": "counting", "include": [{"class": "cat", "count": 2}], "prompt": "two cats"},
    {"tag": "counting", "include": [{"class": "dog", "count": 3}], "prompt": "three dogs"},
]


@config
class Painter:
    """Image i of a prompt list that goes round is of one grey that tells its prompt and its row."""

    prompts: str = ""
    fail_at: int | None = None

    def open(self, making: Making, chunk: int) -> "Painted":
        return Painted(Path(self.prompts).read_text().splitlines(), making, self.fail_at)


class Painted:
    def __init__(self, prompts: list[str], making: Making, fail_at: int | None) -> None:
        self.prompts, self.making, self.fail_at = prompts, making, fail_at
        self.seed, self.identity = making.seed, {"painter": prompts, "seed": making.seed}

    def __len__(self) -> int:
        return self.making.count

    def read(self, rows: range) -> tuple[Tensor, Cond]:
        if self.fail_at in rows:
            raise RuntimeError("power is out")
        pixels = torch.tensor(list(rows), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
        return pixels, Cond(prompts=tuple(self.prompts[i % len(self.prompts)] for i in rows))


@pytest.fixture
def geneval(tmp_path: Path) -> GenEval:
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return GenEval(path=str(path), images=2)


@pytest.fixture
def compbench(tmp_path: Path) -> T2ICompBench:
    path = tmp_path / "color_val.txt"
    path.write_text("a green bench and a blue bowl\ta note\na red car.\n")
    return T2ICompBench(path=str(path), images=3)


def shade(path: Path) -> int:
    pixel = Image.open(path).getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return int(pixel[0])


def test_genevals_folder(geneval: GenEval, tmp_path: Path) -> None:
    """PROMPT/metadata.jsonl and PROMPT/samples/IMAGE.png, both of five digits."""
    out = tmp_path / "out"
    assert lay_out(geneval, Painter(), Making(seed=3), out, chunk=4) == 6
    for k, line in enumerate(LINES):
        assert json.loads((out / f"{k:05d}" / "metadata.jsonl").read_text()) == line
        names = sorted(path.name for path in (out / f"{k:05d}" / "samples").iterdir())
        assert names == ["00000.png", "00001.png"]
    assert shade(out / "00001" / "samples" / "00001.png") == 4  # prompts go round
    lines = [json.loads(line) for line in (out / "images.jsonl").read_text().splitlines()]
    assert lines[4] == {
        "file": "00001/samples/00001.png",
        "prompt": "two cats",
        "category": "counting",
        "row": 4,
        "seed": 3,
    }


def test_compbenchs_folder(compbench: T2ICompBench, tmp_path: Path) -> None:
    """samples/PROMPT_NUMBER.png, numbered through, a prompt's images together."""
    out = tmp_path / "out"
    assert lay_out(compbench, Painter(), Making(), out) == 6
    names = sorted(path.name for path in (out / "samples").iterdir())
    first = "a green bench and a blue bowl"
    assert names[:3] == [f"{first}_{k:06d}.png" for k in range(3)]
    assert names[3:] == [f"a red car._{k:06d}.png" for k in range(3, 6)]
    assert [shade(out / "samples" / name) for name in names] == [0, 2, 4, 1, 3, 5]
    assert {task.category for task in compbench.tasks()} == {"color"}


def test_an_interrupted_folder_is_completed(geneval: GenEval, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    with pytest.raises(RuntimeError, match="power"):
        lay_out(geneval, Painter(fail_at=4), Making(), out, chunk=2)
    lay_out(geneval, Painter(), Making(), out, chunk=2)
    lay_out(geneval, Painter(), Making(), whole, chunk=2)
    for path in whole.rglob("*.png"):
        assert path.read_bytes() == (out / path.relative_to(whole)).read_bytes()
    with pytest.raises(ValueError, match="holds a run with another config"):
        lay_out(geneval, Painter(), Making(seed=1), out, chunk=2)


def test_images_of_other_prompts_are_refused(geneval: GenEval, tmp_path: Path) -> None:
    @config
    class Stored:
        """Its prompts are its own."""

        def open(self, making: Making, chunk: int) -> Painted:
            return Painted(["a bench", "two dogs", "three dogs"], making, None)

    with pytest.raises(ValueError, match="image 1 is of 'two dogs', the benchmark asks 'two cats'"):
        lay_out(geneval, Stored(), Making(), tmp_path / "out")


def results(benchmark: Benchmark, path: Path, right: list[int]) -> str:
    """As GenEval's script writes them, in whatever order."""
    tasks = benchmark.tasks()
    lines = [
        {
            "filename": f"somewhere/else/{benchmark.place(tasks, p, s)}",
            "tag": tasks[p].category,
            "prompt": tasks[p].prompt,
            "correct": bool(right[2 * p + s]),
            "reason": "",
        }
        for p in (2, 0, 1)
        for s in (1, 0)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_genevals_results_come_back(geneval: GenEval, tmp_path: Path) -> None:
    """Overall is the mean of the categories, whatever their sizes."""
    path = results(geneval, tmp_path / "results.jsonl", [1, 0, 1, 1, 1, 0])
    tasks = geneval.tasks()
    found = tally(geneval, tasks, geneval.scores(tasks, path))
    assert [(each.category, each.value, each.images) for each in found] == [
        ("single_object", 0.5, 2),
        ("counting", 0.75, 4),
        ("overall", 0.625, 6),
    ]


def test_a_page_shows_the_images_with_their_verdicts(geneval: GenEval, tmp_path: Path) -> None:
    out = tmp_path / "out"
    lay_out(geneval, Painter(), Making(), out)
    path = results(geneval, tmp_path / "results.jsonl", [1, 0, 1, 1, 1, 0])
    page = show(geneval, geneval.scores(geneval.tasks(), path), out).read_text()
    assert (page.count("class='image right'"), page.count("class='image wrong'")) == (4, 2)
    assert page.index("a bench") < page.index("two cats") < page.index("three dogs")
    assert "<td>0.6250</td>" in page


def test_compbenchs_results_come_back(compbench: T2ICompBench, tmp_path: Path) -> None:
    path, answers = tmp_path / "vqa_result.json", ["0.5", 0.25, "1.0", 0, 0.5, 0.75]
    lines = [{"question_id": k, "answer": answer} for k, answer in enumerate(answers)]
    path.write_text(json.dumps(lines))
    tasks = compbench.tasks()
    scores = compbench.scores(tasks, str(path))
    assert [(s.prompt, s.image) for s in scores] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert [each.value for each in tally(compbench, tasks, scores)] == [0.5, 0.5]
    path.write_text(json.dumps(lines[:-1]))
    with pytest.raises(ValueError, match="every one of 6 images must have one score: 1 lack one"):
        tally(compbench, tasks, compbench.scores(tasks, str(path)))


def test_what_is_not_the_benchmarks_is_named(
    geneval: GenEval, compbench: T2ICompBench, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"none\.jsonl: no such file"):
        GenEval(path="none.jsonl").tasks()
    with pytest.raises(ValueError, match="images must be at least 1"):
        GenEval(path="x", images=0)
    bad = tmp_path / "bad.jsonl"
    for text, message in (
        ("{", "bad.jsonl:1: not JSON"),
        ('{"prompt": "a cat"}', "bad.jsonl:1: not a line of GenEval: prompt, tag and include"),
        ('{"prompt": "two\\nlines", "tag": "x", "include": []}', "prompt must be a line of text"),
        ('{"prompt": 7, "tag": "x", "include": []}', "bad.jsonl:1: prompt must be .* got 7"),
        ("", "bad.jsonl: empty"),
    ):
        bad.write_text(text)
        with pytest.raises(ValueError, match=message):
            GenEval(path=str(bad)).tasks()
    for prompt in ("either/or", "snake_case", "long " * 60):
        bad.write_text(f"a cat\n{prompt}\n")
        with pytest.raises(ValueError, match=r"bad\.jsonl:2: .* cannot name a file"):
            T2ICompBench(path=str(bad)).tasks()
    line = {"filename": "00009/samples/00000.png", "prompt": "a bench", "correct": True}
    bad.write_text(json.dumps(line))
    with pytest.raises(ValueError, match=r"00000\.png is no image of"):
        geneval.scores(geneval.tasks(), str(bad))
    line = {"filename": "00000/samples/00000.png", "prompt": "a bench", "correct": "yes"}
    bad.write_text(json.dumps(line))
    with pytest.raises(ValueError, match=r"bad\.jsonl:1: correct must be a number, got 'yes'"):
        geneval.scores(geneval.tasks(), str(bad))
    bad.write_text('[{"question_id": 0, "answer": null}]')
    with pytest.raises(ValueError, match=r"answer must be a number, got None"):
        compbench.scores(compbench.tasks(), str(bad))
    bad.write_text('[{"question_id": 6, "answer": 1}]')
    with pytest.raises(ValueError, match="question_id 6 is no image of"):
        compbench.scores(compbench.tasks(), str(bad))
    bad.write_text('{"question_id": 6}')
    with pytest.raises(ValueError, match=r"not a vqa_result\.json"):
        compbench.scores(compbench.tasks(), str(bad))
