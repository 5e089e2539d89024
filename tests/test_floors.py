"""The architecture, checked: who imports whom, what library code may not call, strict configs."""

import ast
import dataclasses
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import genvis
from genvis.config import ConfigError, Table, config

HOUSE = Path(genvis.__file__).parent
FLOORS = [
    {"config", "random", "console", "devices"},
    {"types", "checkpoint", "plots", "page"},
    {"kernels", "images", "models"},
    {"nn"},
    {"backbones", "tokenizers", "processes", "features", "text", "data"},
    {"samplers", "objectives", "verifiers", "quant", "adapt"},
    {"search", "training", "evaluation"},
    {"compression", "integrations", "quickstart", "report"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
RANDOM = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like"}
DRAWS = {"normal", "bernoulli", "multinomial"}  # with a generator they are not global


def sources() -> list[Path]:
    return sorted(HOUSE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The package or module of genvis that a file belongs to; "" for genvis/__init__.py."""
    first = path.relative_to(HOUSE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def parts() -> list[str]:
    return sorted({part_of(path) for path in sources()} - {""})


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported from genvis, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, item.name) for item in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "a relative import"
        elif isinstance(node, ast.ImportFrom) and node.module == "genvis":
            yield from ((node.lineno, f"genvis.{item.name}") for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, str(node.module)


def climbs(text: str, part: str, where: str) -> list[str]:
    """The imports in `text`, a file of `part`, that do not go to a lower floor."""
    found = []
    for line, name in imports(ast.parse(text)):
        if name == "a relative import":
            found.append(f"{where}:{line}: {name}; write the full name")
        first, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if first != "genvis" or target.startswith("__") or (target and target == part):
            continue
        here, there = FLOOR.get(part, -1), FLOOR.get(target, len(FLOORS))
        if not target or there >= here:
            found.append(f"{where}:{line}: {part or 'genvis'} (floor {here}) imports {name}")
    return found


def forbidden(text: str, part: str, where: str) -> list[str]:
    """The calls in `text` that hide a device, a random state or code in a file."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        call, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        module, _, name = call.rpartition(".")
        wrong = (
            name == "cuda"
            or (module == "torch" and name in RANDOM | DRAWS and "generator" not in given)
            or (call in ("torch.manual_seed", "torch.cuda.manual_seed_all") and part != "training")
            or (call == "torch.load" and given.get("weights_only") != "True")
        )
        if wrong:
            found.append(f"{where}:{node.lineno}: {call}(...)")
    return found


def lenient(kind: Any, seen: set[type]) -> Iterator[str]:
    """The dataclasses inside a type that were not made by @config."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if kind in seen:
            return
        seen.add(kind)
        rules = getattr(kind, "__pydantic_config__", {})
        if rules.get("extra") != "forbid" or rules.get("strict") is not True:
            yield f"{kind.__module__}:{kind.__qualname__}"
        for hint in get_type_hints(kind, include_extras=True).values():
            yield from lenient(hint, seen)
        return
    if any(isinstance(item, Table) for item in getattr(kind, "__metadata__", ())):
        return  # an open choice: its table is walked by itself
    for argument in getattr(kind, "__args__", ()):
        yield from lenient(argument, seen)


def scripts() -> list[str]:
    root = HOUSE.parent
    found = [*root.glob("train_scripts/*.py"), *root.glob("sampling/*.py")]
    return sorted(str(path.relative_to(root)) for path in found)


@pytest.mark.parametrize("script", scripts())
def test_help_answers_before_torch_is_imported(script: str) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{script!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_path({script!r}, run_name='__main__')\n"
        "except SystemExit as done:\n"
        "    assert not done.code, done.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HOUSE.parent, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


def test_every_part_has_a_floor() -> None:
    folders = {p.name for p in HOUSE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert sorted((folders | set(parts())) - FLOOR.keys()) == []


def test_imports_go_down() -> None:
    found = [
        line
        for path in sources()
        for line in climbs(path.read_text(), part_of(path), str(path.relative_to(HOUSE.parent)))
    ]
    assert not found, "\n".join(found)


def test_the_device_and_the_numbers_come_from_arguments() -> None:
    found = [
        line
        for path in sources()
        for line in forbidden(path.read_text(), part_of(path), str(path.relative_to(HOUSE.parent)))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("part", [part for part in parts() if (HOUSE / part).is_dir()])
def test_configs_behind_tables_are_strict(part: str) -> None:
    package = importlib.import_module(f"genvis.{part}")
    tables = {name: value for name, value in vars(package).items() if isinstance(value, Table)}
    found: list[str] = []
    for label, table in tables.items():
        for name in table:
            try:
                entry = table.resolve(name)
            except ConfigError as error:
                if _foreign(error.__cause__):
                    continue  # an optional package that is not installed here
                raise
            kind = entry if isinstance(entry, type) else type(entry)
            if not dataclasses.is_dataclass(kind):
                found.append(f"{label}[{name}] is {kind.__name__}, not a dataclass")
            found += [f"{label}[{name}]: {what}" for what in lenient(kind, set())]
    assert not found, "\n".join(found)


def _foreign(cause: BaseException | None) -> bool:
    named = str(cause.name) if isinstance(cause, ModuleNotFoundError) else "genvis"
    return named.partition(".")[0] != "genvis"


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("samplers", "from genvis.objectives.diffusion import DiffusionLoss"),  # sideways
        ("nn", "from genvis.backbones import dit"),  # up
        ("nn", "from genvis import training"),
        ("evaluation", "import genvis.integrations.official"),
        ("integrations", "from genvis.compression import allocate"),
        ("config", "from genvis.random import stream"),
        ("search", "def f():\n    import genvis.training.fit"),  # hidden in a function
        ("search", "from . import trees"),
        ("search", "import genvis"),
        ("", "from genvis.config import config"),  # genvis/__init__.py stays empty
        ("search", "from genvis.attic import old"),  # on no floor
    ],
)
def test_a_planted_import_is_found(part: str, line: str) -> None:
    assert len(climbs(line, part, "planted.py")) == 1


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("samplers", "from genvis.processes.interpolants import Linear"),
        ("samplers", "from genvis.samplers.heun import Heun"),
        ("checkpoint", "from genvis import __version__"),
        ("random", "import torch"),
    ],
)
def test_a_right_import_is_not(part: str, line: str) -> None:
    assert climbs(line, part, "planted.py") == []


def test_planted_calls_are_found() -> None:
    wrong = [
        "net.cuda()",
        "torch.randn(3)",
        "torch.rand_like(x)",
        "torch.multinomial(p, 1)",
        "torch.manual_seed(0)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
    ]
    assert [len(forbidden(line, "nn", "planted.py")) for line in wrong] == [1] * len(wrong)
    right = [
        "torch.load(path, weights_only=True)",
        "torch.cuda.is_available()",
        "nn.init.normal_(w)",
        "keys.normal((3,))",
        "torch.multinomial(p, 1, generator=g)",
        "torch.Generator().manual_seed(0)",
    ]
    assert [forbidden(line, "nn", "planted.py") for line in right] == [[]] * len(right)
    assert forbidden("torch.manual_seed(0)", "training", "planted.py") == []


def test_planted_lenient_class_is_found() -> None:
    @dataclasses.dataclass(frozen=True)
    class Loose:
        x: int = 1

    @config
    class Outer:
        inner: Loose | None = None

    assert [name.rpartition(".")[2] for name in lenient(Outer, set())] == ["Loose"]
