"""A generator made smaller by one config: a plan, given or found, and data where that takes some.

Stages, each kept in a folder and taken up again: `calibration/` (rows that the sampler calls the
network with), `sensitivity/` and `allocation/` (a plan of mixed formats, see
`genvis.compression.mixed`); then the plan is applied to the weights.
"""

from pathlib import Path
from typing import TypeVar

from genvis.compression.calibration import Calibration, cached, quantized
from genvis.compression.layers import check_choices, layers_of
from genvis.compression.mixed import Mixed
from genvis.compression.rows import Rows
from genvis.compression.sensitivity import grouped
from genvis.config import config
from genvis.quant.activations import uncalibrated
from genvis.quant.plan import Plan, Rule
from genvis.samplers.base import BaseGenerator

G = TypeVar("G", bound=BaseGenerator)


@config
class Compression:
    """rules: a plan as it is; or mixed: what one is found among, and under which budgets.

    calibration: what the network is shown where a rule or `mixed` looks at data.
    """

    rules: tuple[Rule, ...] | None = None
    mixed: Mixed | None = None
    calibration: Calibration = Calibration()

    def __post_init__(self) -> None:
        if (self.rules is None) == (self.mixed is None):
            raise ValueError("give rules, which are a plan, or mixed, which finds one")
        if self.rules == ():
            raise ValueError("rules must not be empty")

    def check(self, generator: BaseGenerator) -> None:
        """ValueError, with no data seen and nothing measured, for what does not fit the network."""
        if self.mixed is not None:
            names = list(layers_of(generator.backbone))
            check_choices(names, self.mixed.choices)
            grouped(names, self.mixed.groups)
        else:
            self._given.apply(generator.backbone)

    def apply(self, generator: G, folder: str | Path, source: str) -> G:
        """The generator with its network quantized; all that took time is kept in the folder.

        `source` identifies the weights. ValueError as in `check`, and for budgets that no choices
        keep.
        """
        if self.mixed is not None:
            self.check(generator)
            rows = self._rows(generator, folder, source)
            calls = tuple(rows.calls(self.calibration.chunk, generator.device))
            plan = self.mixed.plan(generator, calls, folder, source, self.calibration.prompts)
            return quantized(generator, plan, rows)
        made = generator.changed(self._given)
        if not uncalibrated(made.backbone):
            return made
        return quantized(generator, self._given, self._rows(generator, folder, source))

    @property
    def _given(self) -> Plan:
        return Plan(rules=self.rules or ())

    def _rows(self, generator: BaseGenerator, folder: str | Path, source: str) -> Rows:
        return cached(generator, self.calibration, Path(folder, "calibration"), source)
