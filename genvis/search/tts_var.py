"""TTS-VAR: fewer and fewer candidates as scales get finer and cost more.

Source: "TTS-VAR: A Test-Time Scaling Framework for Visual Auto-Regressive Generation", 2025
(arXiv 2507.18537), section 3 and released code.
Letters: N the unit of the population; b_k candidates go on from scale k, in units of N.
"""

from collections.abc import Sequence
from typing import Annotated

from genvis.config import config
from genvis.search import FEATURES, POTENTIALS
from genvis.search.engine import Engine, Stage
from genvis.search.features import Features, Patches
from genvis.search.potentials import Potential, Value
from genvis.search.selections import Clusters, Keep, Resample, Selection


@config
class TTSVar(Engine):
    """`population` says how many go on from every scale; those of the scales in `cluster` stand for
    what all look like, those of the scales in `resample` are drawn by weight.
    """

    n: int = 1
    lam: float = 10.0
    potential: Annotated[Potential, POTENTIALS] = Value()
    population: tuple[int, ...] = (8, 8, 6, 6, 6, 4, 2, 2, 2, 1, 1, 1, 1)
    cluster: tuple[int, ...] = (2, 5)
    resample: tuple[int, ...] = (6, 9)
    features: Annotated[Features, FEATURES] = Patches()

    def __post_init__(self) -> None:
        super().__post_init__()
        if sorted(self.cluster + self.resample) != sorted(set(self.cluster + self.resample)):
            raise ValueError("cluster and resample must name different scales")
        before = (None, *self.population)
        for k, (last, b) in enumerate(zip(before, self.population, strict=False)):
            if b < 1 or (last is not None and b > last):
                raise ValueError(
                    f"population must fall or stay, down to at least 1: got {b} at {k}"
                )
            if last is not None and b < last and k not in self.cluster + self.resample:
                raise ValueError(f"population falls at scale {k}, where nothing selects")

    @property
    def size(self) -> int:
        return self.n * self.population[0]

    def stages(self, steps: int) -> Sequence[Stage]:
        if len(self.population) != steps:
            raise ValueError(
                f"population must have a number for each of the {steps} scales, got "
                f"{len(self.population)}"
            )
        selects: dict[int, Selection] = dict.fromkeys(
            self.cluster, Clusters(features=self.features)
        )
        selects |= dict.fromkeys(self.resample, Resample(scheme="multinomial", threshold=1.0))
        if not all(0 <= scale < steps - 1 for scale in selects):
            raise ValueError(f"cluster and resample must be scales below the last, {steps - 1}")
        last = Stage(steps, self.n * self.population[-1], Keep())
        chosen = [Stage(i + 1, self.n * self.population[i], selects[i]) for i in sorted(selects)]
        return [*chosen, last]
