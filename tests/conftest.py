"""The golden cases of the parity tests: one test each, and what was deliberately not compared.

Here, and not beside those tests, so that the options exist however pytest is invoked.
"""

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("parity")
    group.addoption(
        "--golden",
        metavar="DIR",
        type=Path,
        default=GOLDEN,
        help="folder of KIND/CASE.json files (default: tests/golden)",
    )
    group.addoption(
        "--kind", metavar="A,B", default="", help="only these kinds (default: all in the folder)"
    )


def pytest_configure(config: pytest.Config) -> None:
    discover(config)  # a wrong option ends the run here, before anything is collected


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden" in metafunc.fixturenames:
        paths = discover(metafunc.config)
        metafunc.parametrize("golden", paths, ids=[f"{p.parent.name}/{p.stem}" for p in paths])


def discover(config: pytest.Config) -> list[Path]:
    """Every KIND/CASE.json of the wanted kinds, sorted. UsageError if there is none."""
    folder: Path = config.getoption("golden")
    if not folder.is_dir():
        raise pytest.UsageError(f"--golden {folder}: no such folder")
    found = sorted(folder.glob("*/*.json"))
    if not found:
        raise pytest.UsageError(f"--golden {folder}: holds no KIND/CASE.json")
    present = sorted({path.parent.name for path in found})
    wanted = [kind.strip() for kind in config.getoption("kind").split(",") if kind.strip()]
    for kind in wanted:
        if kind not in present:
            raise pytest.UsageError(f"--kind {kind}: {folder} holds only {', '.join(present)}")
    return [path for path in found if not wanted or path.parent.name in wanted]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [
        report for how in ("passed", "failed") for report in terminalreporter.getreports(how)
    ]
    lines = [text for r in reports for key, text in r.user_properties if key == "omitted"]
    if lines:
        terminalreporter.section("outputs not compared, and why")
        for line in lines:
            terminalreporter.write_line(str(line))
