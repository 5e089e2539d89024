"""What a search folder is told apart by, and what is said before it is begun; oracles, whose groups
know of each other.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scale_models import VAR, made, saved
from torch import Tensor

from genvis.config import build, config
from genvis.images import from_uint8, to_uint8
from genvis.samplers.collaborative import CollaborativeConfig
from genvis.samplers.generator import Generator, SamplerConfig
from genvis.search.best_of_n import BestOfN
from genvis.search.folder import search_folder
from genvis.search.job import Job
from genvis.search.ledger import Ledger
from genvis.search.makers import generated
from genvis.search.study import Study
from genvis.types import Cond, Sampler
from genvis.verifiers import VERIFIERS

ORACLE = {"name": "inception_oracle", "extractor": {"name": "digits-cnn-v1"}}
JUDGE = {"name": "class_log_prob"}


def study(**fields: Any) -> Study:
    given = {
        "search": {"name": "best_of_n", "n": 3}, "verifier": ORACLE, "judge": JUDGE,
        "count": 5, "group": 1,
    }  # fmt: skip
    return build(Study, {**given, **fields})


def chosen(folder: Path) -> list[int]:
    lines = (folder / "results.jsonl").read_text().splitlines()
    return [json.loads(line)["chosen"] for line in lines]


def test_an_oracle_knows_the_groups_before(generator: Generator, tmp_path: Path) -> None:
    """As by hand: the best by one oracle, and then the oracle of the larger set."""
    wanted = study()
    maker = generated(generator, "weights", wanted)
    search_folder(maker, wanted, tmp_path / "out")
    oracle, best, forgetful = VERIFIERS.build(ORACLE).build(), [], []
    for rows in wanted.groups():
        cond, keys = maker.cond(rows), wanted.keys(rows)
        for verifier, into in ((oracle, best), (VERIFIERS.build(ORACLE).build(), forgetful)):
            found = BestOfN(n=3)(maker.sampler, cond, verifier, keys, Ledger())
            into += found.chosen.tolist()
            if into is best:
                oracle = oracle.accept(from_uint8(to_uint8(found.images)))
    assert chosen(tmp_path / "out") == best
    assert forgetful == [0] * 5  # of no images so far, all are as good as each other
    assert best != forgetful


@dataclass
class Tiring:
    """A sampler that begins so many times."""

    sampler: Sampler
    left: int

    def init(self, noise: Tensor, cond: Cond, keys: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("killed")
        return self.sampler.init(noise, cond, keys)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sampler, name)


def test_an_oracle_is_gone_on_with(generator: Generator, tmp_path: Path) -> None:
    wanted = study()
    maker = generated(generator, "weights", wanted)
    search_folder(maker, wanted, tmp_path / "whole")
    tired = replace(maker, sampler=Tiring(maker.sampler, 3))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="killed"):
        search_folder(tired, wanted, tmp_path / "parts")
    search_folder(maker, wanted, tmp_path / "parts")
    for name in ("results.jsonl", "search.json", "samples.npz"):
        files = [(tmp_path / folder / name).read_bytes() for folder in ("whole", "parts")]
        assert files[0] == files[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"judge": ORACLE, "verifier": JUDGE}, "judges sets of images: the judge must see single"),
        ({"verifier": {"name": "cached", "of": ORACLE}}, "cannot be cached: it changes as it goes"),
        ({"verifier": {"name": "rank_ensemble", "of": [ORACLE]}}, "cannot be in an ensemble: it"),
        (
            {"verifier": {"name": "z_score_ensemble", "of": [ORACLE], "means": [0], "stds": [1]}},
            "cannot be in an ensemble: it changes",
        ),
    ],
)
def test_oracles_are_verifiers_of_their_own(
    generator: Generator, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    wanted = study(**fields)
    with pytest.raises(ValueError, match=message) as caught:
        search_folder(generated(generator, "weights", wanted), wanted, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_second_model_of_a_sampler_is_known(tmp_path: Path) -> None:
    """Another refiner at the same place is another search."""
    drafter = saved(made(VAR), tmp_path / "tokenizer")
    how = CollaborativeConfig(refiner=str(tmp_path / "refiner"), draft_steps=2)
    for where in ("sampler", "final"):
        wanted = replace(study(verifier=JUDGE, judge={**JUDGE, "classifier": "digits-judge-v1"},
                               count=1), **{where: how})  # fmt: skip
        for seed in (1, 2):
            refiner = replace(made(VAR, seed), config=drafter.config, tokenizer=drafter.tokenizer)
            refiner.save_pretrained(tmp_path / "refiner")
            maker = generated(drafter, "weights", wanted)
            if seed == 1:
                search_folder(maker, wanted, tmp_path / where)
            else:
                with pytest.raises(ValueError, match=r"holds a run with another config: others\."):
                    search_folder(maker, wanted, tmp_path / where)


def test_what_a_study_leaves_to_the_model_is_known(generator: Generator) -> None:
    """The same weights with another sampler in their config make other images."""
    config = replace(generator.config, sampler=SamplerConfig(steps=7))
    other = replace(generator, config=config)
    makers = [generated(each, "weights", study()) for each in (generator, other)]
    assert makers[0].identity != makers[1].identity
    told = study(sampler={"steps": 3})  # nothing is left to it
    makers = [generated(each, "weights", told) for each in (generator, other)]
    assert makers[0].identity == makers[1].identity


def test_all_that_is_asked_for_is_checked_before_the_first_image(generator: Generator) -> None:
    wanted = study(verifier=JUDGE, judge={**JUDGE, "classifier": "digits-judge-v1"}, count=4)
    maker = generated(generator, "weights", wanted)
    labels = replace(maker, things=Cond(label=torch.tensor([1, 2, 3, 12])))
    with pytest.raises(ValueError, match="knows labels 0 to 9, got 1 to 12"):
        Job.of(wanted, labels)
    Job.of(replace(wanted, count=3), labels)  # nobody asks for the last one


@config
class Wrong:
    """A judge that gives something else than one finite number an image."""

    value: float
    shape: tuple[int, ...] = ()
    name: str = "wrong"

    def build(self) -> "Wrong":
        return self

    def __call__(self, images: Tensor, cond: Cond) -> Tensor:
        return torch.full((len(images), *self.shape), self.value)


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (Wrong(value=float("inf")), "the verifier wrong gave a score that is not finite"),
        (Wrong(value=1.0, shape=(2,)), r"must give one score an image, got \(1, 2\) for 1 images"),
    ],
)
def test_a_judge_that_gives_no_numbers_is_named(
    generator: Generator, tmp_path: Path, judge: Wrong, message: str
) -> None:
    wanted = replace(study(verifier=JUDGE, judge="class_logit"), judge=judge)
    with pytest.raises(ValueError, match=message):
        search_folder(generated(generator, "weights", wanted), wanted, tmp_path / "out")
