"""A golden case: its JSON, its tensors, and what has been compared of it so far."""

import json
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor


@dataclass
class Case:
    """One KIND/CASE.json with the CASE.safetensors beside it, if there is one.

    Every "out/" tensor must be compared or omitted; `expect` adds outputs that the JSON itself
    holds. Mismatches are collected, so that one run shows them all.
    """

    path: Path
    compared: dict[str, int] = field(default_factory=dict)
    omitted: dict[str, str] = field(default_factory=dict)
    mismatches: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return self.path.parent.name

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The JSON."""
        return json.loads(self.path.read_text(encoding="utf-8"))

    @cached_property
    def stored(self) -> dict[str, Tensor]:
        """Every tensor under its full name."""
        path = self.path.with_suffix(".safetensors")
        return load_file(path) if path.exists() else {}

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under "in/", "out/", "state/", ..., by the rest of their names."""
        return {k.removeprefix(prefix): v for k, v in self.stored.items() if k.startswith(prefix)}

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        """Every output that must be accounted for."""
        return self.tensors("out/")

    def expect(self, name: str, value: Any) -> None:
        """An output given by the JSON: from now on it must be compared or omitted too."""
        self.expected[name] = torch.as_tensor(value)

    def tolerance(self, name: str) -> tuple[float, float] | None:
        """(atol, rtol) of the JSON's `compare`: its name, else the longest pattern."""
        table = self.spec.get("compare") or {}
        fitting = [pattern for pattern in table if fnmatchcase(name, pattern)]
        if not fitting:
            return None
        atol, rtol = table[max(fitting, key=lambda pattern: (pattern == name, len(pattern)))]
        return float(atol), float(rtol)

    def compare(
        self,
        name: str,
        actual: Tensor | float,
        expected: Tensor | None = None,
        tolerance: tuple[float, float] | None = None,
        slack: Tensor | None = None,
    ) -> None:
        """Compare the output `name` (without "out/") with `expected` (default: the stored one).

        The JSON's own tolerance rules; `tolerance` (atol, rtol) is the kind's table, for the cases
        whose tolerance is a sentence. `slack` (elementwise) is what another order of operations
        adds to it, where an output was divided by something small. Shapes must be equal, and
        integers are compared as numbers.
        """
        if name not in self.expected:
            pytest.fail(f"{self.kind}/{self.name} has no output {name!r}")
        pair = self.tolerance(name) or tolerance
        if pair is None:
            pytest.fail(f"{name}: the JSON has no `compare` for it, so {self.kind} must give one")
        self.compared[name] = self.compared.get(name, 0) + 1
        wanted = self.expected[name] if expected is None else expected
        found = torch.as_tensor(actual).detach().cpu()
        if found.shape != wanted.shape:
            self.mismatches.append(f"{name}: shape {tuple(found.shape)}, not {tuple(wanted.shape)}")
            return
        found, wanted = found.double(), wanted.double()
        if isinstance(slack, Tensor):
            gap = found - wanted
            found = wanted + gap.sign() * (gap.abs() - slack).clamp(min=0)
        try:
            torch.testing.assert_close(found, wanted, atol=pair[0], rtol=pair[1], equal_nan=False)
        except AssertionError as error:
            self.mismatches.append(f"{name}: {error}")

    def omit(self, pattern: str, reason: str) -> None:
        """Leave out the outputs that fit `pattern`, for a reason that is shown with the results."""
        names = [name for name in self.expected if fnmatchcase(name, pattern)]
        if not names or not reason:
            pytest.fail(f"omit({pattern!r}): needs an output of this name, and a reason")
        self.omitted.update(dict.fromkeys(names, reason))

    def unclaimed(self, why: str = "") -> None:
        """Fail: the kind has a test, but not for such a case."""
        pytest.fail(f"no test claims {self.kind}/{self.name}{': ' if why else ''}{why}")

    def later(self, why: str) -> None:
        """Skip: the case is of something that is not built yet, and says so in the results."""
        pytest.skip(f"{self.kind}/{self.name}: {why}")

    def finish(self) -> None:
        """Fail if anything differed or was forgotten."""
        problems = list(self.mismatches)
        forgotten = sorted(self.expected.keys() - self.compared.keys() - self.omitted.keys())
        problems += [f"{name}: neither compared nor omitted" for name in forgotten]
        both = sorted(self.compared.keys() & self.omitted.keys())
        problems += [f"{name}: both compared and omitted" for name in both]
        if not (self.compared or problems):
            problems.append("nothing was compared")
        if problems:
            lines = "\n".join(problems)
            pytest.fail(f"{self.kind}/{self.name}: {len(problems)} problems\n{lines}")
