"""What makes a search's candidates: a model folder, or a folder of a diffusers pipeline.

A plain path names its own kind; what needs more words (a negative prompt) is a YAML file with
`name:` and fields. Letters: P things that images may show.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from genvis.config import Table, config, read_yaml
from genvis.devices import processes
from genvis.models import fingerprint
from genvis.samplers import SAMPLERS
from genvis.samplers.base import BaseGenerator, check_negative, load_generator
from genvis.samplers.generate import in_turn, price
from genvis.search.study import Study
from genvis.types import Cond, Sampler


@dataclass(frozen=True)
class Maker:
    """The sampler of the candidates, the one that makes the answer again (None: nobody does),
    conditions (P rows) that images take in turn, and what the images depend on besides the study:
    plain data, such as hashes of weights.
    """

    sampler: Sampler
    final: Sampler | None
    things: Cond
    identity: Mapping[str, Any]

    def cond(self, rows: range) -> Cond:
        """Of the images with these numbers."""
        return in_turn(self.things, rows)

    @property
    def plain(self) -> Sampler:
        """What makes an image without search."""
        return self.final or self.sampler

    @property
    def unit(self) -> tuple[str, int]:
        """What compute is measured in, and how much of it one image takes without search: tokens
        of a next-scale model, network evaluations of any other.
        """
        one = price(self.plain)
        return ("tokens", one.tokens) if one.tokens else ("evaluations", one.evaluations)


class Source(Protocol):
    def open(self, study: Study) -> Maker:
        """With the samplers and the classes or prompts of the study."""
        ...


SOURCES = Table(
    "source of candidates",
    {
        "model": "genvis.search.makers:Model",
        "pipeline": "genvis.integrations.diffusers_maker:PipelineSource",
    },
)


@config
class Model:
    """A run folder, a model folder or a hub id."""

    path: str
    trust_code: bool = False

    def open(self, study: Study) -> Maker:
        generator = load_generator(self.path, trust_code=self.trust_code)
        return generated(generator, fingerprint(self.path), study)


def source_of(given: str | Path, *, trust_code: bool = False) -> Source:
    """The source behind a path: a .yaml that says which, a pipeline's folder, or a model."""
    path = Path(given)
    if path.suffix == ".yaml":
        return SOURCES.build(read_yaml(path))
    if (path / "model_index.json").is_file():
        return SOURCES.build({"name": "pipeline", "path": str(given)})
    return Model(path=str(given), trust_code=trust_code)


def generated(generator: BaseGenerator, identity: str, study: Study) -> Maker:
    """From a generator at hand, whose weights are told from others by `identity`."""
    here = generator.to(processes().device)
    blind = generator.text is None and not generator.num_classes
    if study.prompts is not None and study.negative is None and blind:
        things = Cond(prompts=study.prompts)  # for the verifiers alone
    else:
        things = here.things(study.classes, study.prompts, study.negative)
    check_negative(here.choice(study.sampler), study.negative)
    final = None if study.final is None else here.sampler(study.final)
    known = {"source": identity, **_unsaid(generator, study)}
    return Maker(here.sampler(study.sampler), final, things, known)


def _unsaid(generator: BaseGenerator, study: Study) -> dict[str, Any]:
    """The sampler that the study leaves to the model, and the weights of other models in use."""
    chosen = generator.choice(study.sampler)
    suggested = {} if study.sampler else {"suggested": SAMPLERS.dump(chosen)}
    others = (name for each in (chosen, study.final) for name in getattr(each, "others", ()))
    named = {name: fingerprint(name) for name in others}
    return suggested | ({"others": named} if named else {})
