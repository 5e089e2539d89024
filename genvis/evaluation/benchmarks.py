"""Published benchmarks of prompts, for users who have their detectors: from the published prompt
files to images in the folders that the official scripts read, and from what those scripts write to
scores.

Source: Ghosh et al. 2023, "GenEval: An Object-Focused Framework for Evaluating Text-to-Image
Alignment"; Huang et al. 2023, "T2I-CompBench: A Comprehensive Benchmark for Open-world
Compositional Text-to-image Generation".
Letters: P prompts, n images of each.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from genvis.checkpoint import read_json
from genvis.config import config
from genvis.console import prompt_lines

LONGEST = 255  # bytes of a file's name


@dataclass(frozen=True)
class Task:
    """A prompt, what kind it is of, and the line of the published file that says so."""

    prompt: str
    category: str
    line: dict[str, Any]


@dataclass(frozen=True)
class Score:
    """What a detector made of image `image` of prompt `prompt`: 0 or 1, or anything between."""

    prompt: int
    image: int
    value: float


class Benchmark(Protocol):
    """path: the published prompt file; images: how many of each prompt."""

    @property
    def images(self) -> int: ...
    def tasks(self) -> tuple[Task, ...]:
        """ValueError for a file that is missing or not of this benchmark."""
        ...

    def place(self, tasks: Sequence[Task], prompt: int, image: int) -> str:
        """Where in the folder an image belongs."""
        ...

    def beside(self, tasks: Sequence[Task]) -> Iterator[tuple[str, str]]:
        """Other files that the official script reads: where, and their text."""
        ...

    def scores(self, tasks: Sequence[Task], results: str) -> list[Score]:
        """What the official script wrote. ValueError unless it is of these prompts."""
        ...


@config
class GenEval:
    """path: evaluation_metadata.jsonl. The official script is then run as
    `python evaluation/evaluate_images.py FOLDER --outfile results.jsonl --model-path DETECTOR`.
    """

    path: str
    images: int = 4

    def __post_init__(self) -> None:
        _check_images(self.images)

    def tasks(self) -> tuple[Task, ...]:
        lines = [_json(self.path, k, text) for k, text in enumerate(prompt_lines(self.path), 1)]
        for k, line in enumerate(lines, 1):
            if not isinstance(line, dict) or not {"prompt", "tag", "include"} <= line.keys():
                raise ValueError(f"{self.path}:{k}: not a line of GenEval: prompt, tag and include")
            prompt = line["prompt"]
            if not isinstance(prompt, str) or not prompt.strip() or set(prompt) & {"\r", "\n"}:
                raise ValueError(f"{self.path}:{k}: prompt must be a line of text, got {prompt!r}")
        return tuple(Task(line["prompt"], line["tag"], line) for line in lines)

    def place(self, tasks: Sequence[Task], prompt: int, image: int) -> str:
        return f"{prompt:05d}/samples/{image:05d}.png"

    def beside(self, tasks: Sequence[Task]) -> Iterator[tuple[str, str]]:
        for k, task in enumerate(tasks):
            yield f"{k:05d}/metadata.jsonl", json.dumps(task.line)

    def scores(self, tasks: Sequence[Task], results: str) -> list[Score]:
        every = product(range(len(tasks)), range(self.images))
        at = {self.place(tasks, *where): where for where in every}
        found = []
        for k, text in enumerate(prompt_lines(results), 1):
            line = _json(results, k, text)
            if not isinstance(line, dict) or not {"filename", "correct", "prompt"} <= line.keys():
                raise ValueError(f"{results}:{k}: not a result: filename, prompt and correct")
            where = at.get("/".join(Path(line["filename"]).parts[-3:]))
            if where is None or tasks[where[0]].prompt != line["prompt"]:
                raise ValueError(f"{results}:{k}: {line['filename']} is no image of {self.path}")
            found.append(Score(*where, _number(line["correct"], f"{results}:{k}: correct")))
        return found


@config
class T2ICompBench:
    """path: a prompt file of one category, such as examples/dataset/color_val.txt. The official
    scripts are then run on the folder, such as `python BLIP_vqa.py --out_dir=FOLDER`.
    """

    path: str
    images: int = 10

    def __post_init__(self) -> None:
        _check_images(self.images)

    def tasks(self) -> tuple[Task, ...]:
        category = Path(self.path).stem.removesuffix("_val").removesuffix("_train")
        prompts = [line.split("\t")[0].strip() for line in prompt_lines(self.path)]
        for k, prompt in enumerate(prompts, 1):  # a file is named by it, up to the first "_"
            long = len(f"{prompt}_000000.png".encode()) > LONGEST
            if not prompt or "/" in prompt or "_" in prompt or long:
                raise ValueError(
                    f"{self.path}:{k}: {prompt[:40]!r} cannot name a file as T2I-CompBench does: "
                    f"it must have no / and no _ and fit {LONGEST} bytes"
                )
        return tuple(Task(prompt, category, {"prompt": prompt}) for prompt in prompts)

    def place(self, tasks: Sequence[Task], prompt: int, image: int) -> str:
        return f"samples/{tasks[prompt].prompt}_{prompt * self.images + image:06d}.png"

    def beside(self, tasks: Sequence[Task]) -> Iterator[tuple[str, str]]:
        return iter(())

    def scores(self, tasks: Sequence[Task], results: str) -> list[Score]:
        """Of any of its vqa_result.json, which number the images from 0."""
        lines = read_json(results)
        known = isinstance(lines, list) and all(
            isinstance(line, dict) and {"question_id", "answer"} <= line.keys() for line in lines
        )
        if not known:
            raise ValueError(f"{results}: not a vqa_result.json: question_id and answer")
        numbers = [int(_number(line["question_id"], f"{results}: question_id")) for line in lines]
        if wrong := [n for n in numbers if not 0 <= n < len(tasks) * self.images]:
            raise ValueError(f"{results}: question_id {wrong[0]} is no image of {self.path}")
        return [
            Score(*divmod(number, self.images), _number(line["answer"], f"{results}: answer"))
            for number, line in zip(numbers, lines, strict=True)
        ]


@dataclass(frozen=True)
class Tally:
    """The mean score of a category's images, and how many there are."""

    category: str
    value: float
    images: int


def tally(benchmark: Benchmark, tasks: Sequence[Task], scores: Sequence[Score]) -> list[Tally]:
    """Every category, and `overall`: the mean of theirs, each counting the same. ValueError unless
    every image has one score.
    """
    every = set(product(range(len(tasks)), range(benchmark.images)))
    given = {(score.prompt, score.image): score.value for score in scores}
    if given.keys() != every or len(scores) != len(every):
        lacking = len(every - given.keys())
        what = f"{lacking} lack one" if lacking else "some have several"
        raise ValueError(f"every one of {len(every)} images must have one score: {what}")
    values: dict[str, list[float]] = {}
    for prompt, image in sorted(every):
        values.setdefault(tasks[prompt].category, []).append(given[prompt, image])
    found = [Tally(name, fmean(of), len(of)) for name, of in values.items()]
    return [*found, Tally("overall", fmean(each.value for each in found), len(every))]


def _check_images(images: int) -> None:
    if images < 1:
        raise ValueError(f"images must be at least 1 of each prompt, got {images}")


def _number(value: Any, where: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} must be a number, got {value!r}") from error


def _json(path: str, line: int, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{line}: not JSON: {error}") from error
