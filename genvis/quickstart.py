"""The main job, step by step, in one folder that can be left and taken up again at any moment.

Every step has a folder or records of its own; a step that is finished is only read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genvis.checkpoint import RUN, open_run
from genvis.config import ConfigError, dump, load
from genvis.evaluation.evaluate import REFERENCES, Evaluation, Judge
from genvis.evaluation.records import Record, append, read, stamped
from genvis.evaluation.spread import bootstrap
from genvis.models import fingerprint
from genvis.quant.plan import Plan
from genvis.quant.report import summary
from genvis.samplers.folder import Sampling, read_samples, sample_folder
from genvis.samplers.generate import in_turn
from genvis.samplers.generator import Generator, GeneratorConfig
from genvis.search.best_of_n import BestOfN
from genvis.search.folder import search_folder
from genvis.search.makers import generated
from genvis.search.study import Study
from genvis.training.fit import fit
from genvis.training.recipe import Recipe

FULL = "fp32"  # the samples that quantized ones are compared with


@dataclass(frozen=True)
class Quickstart:
    recipe: Recipe
    sampling: Sampling
    study: Study
    plans: dict[str, Plan]
    judge: Judge

    @classmethod
    def load(
        cls, configs: str | Path, seed: int = 0, overrides: Sequence[str] = ()
    ) -> "Quickstart":
        """From dit, sampling, search, evaluation and int*.yaml in a folder; overrides: the
        recipe's.
        """
        configs = Path(configs)
        plans = {path.stem: load(Plan, path) for path in sorted(configs.glob("int*.yaml"))[::-1]}
        if not plans:
            raise ConfigError(f"{configs}: no plan named int*.yaml in this folder")
        return cls(
            load(Recipe, configs / "dit.yaml", [f"seed={seed}", *overrides]),
            load(Sampling, configs / "sampling.yaml", [f"seed={seed}"]),
            load(Study, configs / "search.yaml", [f"seed={seed}"]),
            plans,
            Judge(load(Evaluation, configs / "evaluation.yaml")),
        )

    def run(self, folder: str | Path) -> None:
        """Train, sample, search, quantize and evaluate, all into `folder`.

        ValueError if the folder holds a study with another config, before anything is changed.
        """
        self._check()
        folder = open_run(folder, self._config())
        notes = Notes(folder / "records.jsonl", self.judge)
        self._train(folder)
        generator = Generator.from_pretrained(folder / "train")
        images, labels = self._sample(generator, folder / "train", folder / "samples")
        notes.measure(FULL, images, labels, extra=[_size(FULL, folder / "train" / "model")])
        notes.references()
        self._search(generator, folder, notes)
        for name, plan in self.plans.items():
            self._quantize(generator, plan, name, folder, images, notes)

    def _check(self) -> None:
        """ValueError for what would otherwise stop the study only after its training."""
        model, search, budgets = self.recipe.model, self.study.search, self.study.budgets or (0,)
        if not isinstance(model, GeneratorConfig):
            raise ValueError(f"recipe: model must be a generator, got {type(model).__name__}")
        if not isinstance(search, BestOfN) or not 0 < budgets[-1] <= search.n:
            raise ValueError(
                "search: must be best_of_n with budgets, the last of which is at most n"
            )
        fresh = model.build()
        for name, plan in self.plans.items():
            try:
                fresh.changed(plan)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        needed = self.judge.held_out.labels.bincount()
        made = {
            "sampling": in_turn(self.sampling.things(fresh), range(self.sampling.count)),
            "search": in_turn(fresh.things(self.study.classes), range(self.study.count)),
        }
        for name, cond in made.items():
            assert cond.label is not None
            counts = cond.label.bincount(minlength=len(needed))[: len(needed)]
            few = (counts < needed).nonzero().flatten().tolist()
            if few:
                k = few[0]
                raise ValueError(
                    f"{name}: makes {counts[k]} images of class {k}, evaluation needs {needed[k]}"
                )

    def _config(self) -> dict[str, Any]:
        """All that the results depend on: what a folder must agree with to be gone on with."""
        return {
            "recipe": dump(self.recipe),
            "sampling": dump(self.sampling),
            "study": dump(self.study),
            "plans": {name: dump(plan) for name, plan in self.plans.items()},
            "evaluation": dump(self.judge.evaluation),
            "extractor": self.judge.extractor.sha256,
            "verifier": self.study.verifier.build().name,
            "judge": self.study.judge.build().name,
        }

    def _train(self, folder: Path) -> None:
        try:
            fit(self.recipe, folder / "train")
        except Exception:
            if [path.name for path in folder.iterdir()] == [RUN]:  # refused before any work
                (folder / RUN).unlink()
            raise

    def _sample(self, generator: Generator, model: Path, out: Path) -> tuple[Tensor, Tensor]:
        images, labels = sample_folder(generator, self.sampling, out, fingerprint(model))
        assert labels is not None  # `_check` has counted them
        return images, labels

    def _search(self, generator: Generator, folder: Path, notes: "Notes") -> None:
        maker = generated(generator, fingerprint(folder / "train"), self.study)
        rows = search_folder(maker, self.study, folder / "search")["rows"]
        base, first = torch.tensor(rows[0]["judge"]), f"best of {rows[0]['budget']}"
        for row in rows:
            subject = f"best of {row['budget']}"
            scores = {key: torch.tensor(row[key]) for key in ("verifier", "judge")}
            extra = [_interval(subject, f"score_{key}", values) for key, values in scores.items()]
            if row is not rows[0]:
                gain = scores["judge"] - base
                extra.append(_interval(subject, "judge_gain", gain, reference=first))
            samples = folder / "search" / f"budget_{row['budget']:03d}" / "samples.npz"
            notes.measure(subject, *read_samples(samples), extra=extra)

    def _quantize(
        self,
        generator: Generator,
        plan: Plan,
        name: str,
        folder: Path,
        full: Tensor,
        notes: "Notes",
    ) -> None:
        if not (folder / name).exists():
            generator.changed(plan).save_pretrained(folder / name)
        quantized = Generator.from_pretrained(folder / name)
        share = summary(generator.net, quantized.net).share_changed
        images, labels = self._sample(quantized, folder / name, folder / f"{name}_samples")
        changed = stamped(subject=name, metric="share_changed", value=share, n=1)
        notes.measure(name, images, labels, full, extra=[_size(name, folder / name), changed])


@dataclass(frozen=True)
class Notes:
    """The records of a study: a subject is measured once, and written in one piece."""

    path: Path
    judge: Judge

    def measure(
        self,
        subject: str,
        images: Tensor,
        labels: Tensor,
        against: Tensor | None = None,
        extra: Sequence[Record] = (),
    ) -> None:
        if subject not in self._known():
            append(self.path, *self.judge.measure(subject, images, labels, against), *extra)

    def references(self) -> None:
        if REFERENCES[-1] not in self._known():
            append(self.path, *self.judge.references())

    def _known(self) -> set[str]:
        return {r.subject or "" for r in read(self.path)} if self.path.exists() else set()


def _size(subject: str, model: Path) -> Record:
    size = (model / "model.safetensors").stat().st_size
    return stamped(subject=subject, metric="bytes", value=size, n=1)


def _interval(subject: str, metric: str, values: Tensor, reference: str | None = None) -> Record:
    found = bootstrap(values)
    interval = (found.low, found.high)
    return stamped(
        subject=subject,
        metric=metric,
        value=found.mean,
        n=len(values),
        interval=interval,
        reference=reference,
    )
