"""Our outputs against recorded ones: `pytest tests/parity [--golden DIR] [--kind A,B]`.

A case that no module of `kinds/` claims is a failure, and so is an output that is forgotten.
"""

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from golden_case import Case

KINDS = Path(__file__).parent / "kinds"


def test_golden(golden: Path, record_property: Callable[[str, object], None]) -> None:
    case = Case(golden)
    if not (KINDS / f"{case.kind}.py").is_file():
        case.unclaimed(f"tests/parity/kinds/{case.kind}.py does not exist")
    stated = case.spec.get("kind", case.kind), case.spec.get("case", case.name)
    if stated != (case.kind, case.name):
        pytest.fail(f"{golden}: its JSON says {'/'.join(stated)}")
    with torch.random.fork_rng():
        importlib.import_module(f"kinds.{case.kind}").check(case)
    for name, reason in case.omitted.items():
        record_property("omitted", f"{case.kind}/{case.name} {name}: {reason}")
    case.finish()
