"""Configs: an exact round trip, and one clear line for everything that is wrong."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import pytest

from genvis.config import (
    ConfigError,
    Table,
    build,
    config,
    dump,
    first_difference,
    load,
    override,
    parse_yaml,
    read_yaml,
    write_yaml,
)


class Shape(Protocol):
    """What every entry of the table below has; the loader does not look at it."""

    def area(self) -> float: ...


SHAPES = Table(
    "shape", {"disk": f"{__name__}:Disk", "box": f"{__name__}:Box", "a4": f"{__name__}:A4"}
)


@config
class Disk:
    radius: float = 1.0

    def __post_init__(self) -> None:
        if self.radius <= 0:
            raise ValueError(f"radius must be positive, got {self.radius}")

    def area(self) -> float:
        return 3.14 * self.radius**2


@config
class Box:
    sides: tuple[float, float] = (1.0, 1.0)
    inner: Annotated[Shape, SHAPES] | None = None

    def area(self) -> float:
        return self.sides[0] * self.sides[1]


@config
class Optim:
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    kind: Literal["adamw", "lion"] = "adamw"


@config
class Rule:
    match: str
    bits: int = 8


@config
class Plan:
    steps: int
    shape: Annotated[Shape, SHAPES] = Disk()
    optim: Optim = Optim()
    rules: tuple[Rule, ...] = ()
    note: str | None = None
    log: bool = False


@dataclasses.dataclass(frozen=True)
class Loose:
    radius: float = 1.0


A4 = Box(sides=(21.0, 29.7))

FULL = Plan(
    steps=3,
    shape=Box(sides=(2.0, 3.0), inner=Disk(radius=0.5)),
    optim=Optim(lr=2e-4, kind="lion"),
    rules=(Rule(match="attn.*", bits=4), Rule(match="no: [x] #1")),
    note="2e-4",
    log=True,
)


def message(call: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("plan", [FULL, Plan(steps=1), Plan(steps=1, shape=A4)])
def test_dump_then_build_is_equal(plan: Plan, tmp_path: Path) -> None:
    data = dump(plan)
    assert build(Plan, data) == plan
    assert build(Plan, json.loads(json.dumps(data))) == plan
    assert build(Plan, parse_yaml(write_yaml(data))) == plan
    (tmp_path / "plan.yaml").write_text(write_yaml(data))
    assert load(Plan, tmp_path / "plan.yaml") == plan
    assert SHAPES.build(SHAPES.dump(plan.shape)) == plan.shape


def test_infinity_survives() -> None:
    plan = Plan(steps=1, optim=Optim(lr=float("inf")))
    assert build(Plan, parse_yaml(write_yaml(dump(plan)))) == plan


@pytest.mark.parametrize(
    "text",
    [
        "2e-4",
        "no",
        "1:30",
        "010",
        "true",
        "null",
        "~",
        "",
        "1_000",
        ".inf",
        "a: b",
        "0x1F",
        "1.",
        "-",
    ],
)
def test_text_that_looks_like_something_else_stays_text(text: str) -> None:
    assert parse_yaml(write_yaml({"note": text})) == {"note": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1e6", 1e6),
        ("-.5", -0.5),
        (".inf", float("inf")),
        ("400_000", 400_000),
        ("010", 10),
        ("no", "no"),
        ("1:30", "1:30"),
        ("2024-01-02", "2024-01-02"),
        ("true", True),
        ("null", None),
        ("[1, 2.5]", [1, 2.5]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_yaml_scalars(text: str, value: Any) -> None:
    read = parse_yaml(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"steps": 1, "stpes": 2}, "Plan has no field 'stpes'; did you mean 'steps'?"),
        (
            {"steps": 1, "optim": {"zzz": 2}},
            "optim: Optim has no field 'zzz'; it has lr, betas, kind",
        ),
        (
            {"steps": 1, "shape": {"name": "dsik"}},
            "shape.name: 'dsik' is not one of disk, box, a4; did you mean 'disk'?",
        ),
        ({"steps": True}, "steps: should be a valid integer, got True"),
        ({"steps": 1.5}, "steps: should be a valid integer, got 1.5"),
        ({"steps": "1"}, "steps: should be a valid integer, got '1'"),
        ({"steps": 1, "log": 1}, "log: should be a valid boolean, got 1"),
        ({"steps": 1, "note": 5}, "note: should be a valid string, got 5"),
        ({"steps": 1, "optim": {"lr": "2e-4"}}, "optim.lr: should be a valid number, got '2e-4'"),
        ({}, "steps: missing, and it has no default"),
        (
            {"steps": 1, "optim": {"kind": "sgd"}},
            "optim.kind: should be 'adamw' or 'lion', got 'sgd'",
        ),
        (
            {"steps": 1, "shape": {"name": "disk", "radius": -1}},
            "shape: radius must be positive, got -1.0",
        ),
        (
            {"steps": 1, "shape": {"name": "box", "inner": {"name": "disk", "radios": 1}}},
            "shape.inner: Disk has no field 'radios'; did you mean 'radius'?",
        ),
        (
            {"steps": 1, "shape": {"name": "a4", "sides": [1, "x"]}},
            "shape.sides.1: should be a valid number, got 'x'",
        ),
        (
            {"steps": 1, "rules": [{"match": "a"}, {"match": "b", "bist": 4}]},
            "rules.1: Rule has no field 'bist'; did you mean 'bits'?",
        ),
        ({"steps": 1, "rules": [{"bits": 4}]}, "rules.0.match: missing, and it has no default"),
        (
            {"steps": 1, "shape": {"radius": 1}},
            "shape: expected a shape as {name: ..., fields...}, got {'radius': 1}",
        ),
        (
            {"steps": 1, "shape": {"name": "my_lab.nets:Net"}},
            "shape.name: 'my_lab.nets:Net' needs the module 'my_lab', which is not installed",
        ),
        (
            {"steps": 1, "shape": {"name": f"{__name__}:Square"}},
            f"shape.name: the module {__name__!r} has no 'Square'",
        ),
        (
            {"steps": 1, "shape": {"name": ".nets:Net"}},
            "shape.name: '.nets:Net' is not of the form module:Class",
        ),
        (
            {"steps": 1, "shape": {"name": f"{__name__}:Loose"}},
            f"shape.name: '{__name__}:Loose' is not a config; "
            "its class needs the decorator @config",
        ),
        (
            {"steps": 1, "shape": {"name": f"{__name__}:message"}},
            f"shape.name: '{__name__}:message' is not a config; "
            "its class needs the decorator @config",
        ),
    ],
)
def test_bad_input_is_one_exact_line(data: dict[str, Any], expected: str) -> None:
    assert message(lambda: build(Plan, data)) == expected


@pytest.mark.parametrize(
    ("betas", "expected"),
    [
        ([0.9], "optim.betas.1: missing: too few items"),
        (
            [0.9, 0.99, 0.999],
            "optim.betas: Tuple should have at most 2 items after validation, not 3, "
            "got [0.9, 0.99, 0.999]",
        ),
        (0.9, "optim.betas: should be a valid array, got 0.9"),
    ],
)
def test_wrong_length_names_the_path(betas: Any, expected: str) -> None:
    assert message(lambda: build(Plan, {"steps": 1, "optim": {"betas": betas}})) == expected


def test_every_problem_has_its_line() -> None:
    found = message(lambda: build(Plan, {"steps": "x", "optim": {"lr": "y"}, "log": 3}))
    assert [line.partition(":")[0] for line in found.splitlines()] == ["steps", "optim.lr", "log"]


def test_python_construction_is_as_strict() -> None:
    assert message(lambda: Plan(steps=True)) == "steps: should be a valid integer, got True"
    unknown = "Plan has no field 'stpes'; did you mean 'steps'?"
    assert message(lambda: Plan(steps=1, stpes=2)) == unknown  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.steps = 4  # type: ignore[misc]


def test_a_constant_is_a_preset_that_fields_refine() -> None:
    assert SHAPES.build("a4") == A4
    assert SHAPES.build({"name": "a4", "sides": [1, 2]}) == Box(sides=(1.0, 2.0))
    assert SHAPES.dump(A4)["name"] == "box"
    assert build(Plan, {"steps": 1, "shape": "a4"}).shape == A4


def test_open_choice_out_of_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "from genvis.config import config\n@config\nclass Ring:\n    width: float = 1.0\n"
    (tmp_path / "lab_of_rings.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    data = {"name": "lab_of_rings:Ring", "width": 2.0}
    plan = build(Plan, {"steps": 1, "shape": data})
    assert dump(plan)["shape"] == data
    assert build(Plan, dump(plan)) == plan


def test_untrusted_code_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab_of_traps.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    inner = {"name": "box", "inner": {"name": "lab_of_traps:Net"}}
    expected = (
        "'lab_of_traps:Net' would import code that is not part of genvis; "
        "pass trust_code=True to allow it"
    )
    found = message(lambda: build(Plan, {"steps": 1, "shape": inner}, trust_code=False))
    assert found == f"shape.inner.name: {expected}"
    assert message(lambda: SHAPES.build(inner, trust_code=False)) == f"inner.name: {expected}"
    assert message(lambda: SHAPES.resolve("lab_of_traps:Net", trust_code=False)) == expected
    assert not (tmp_path / "sprung").exists()
    assert build(Plan, {"steps": 1, "shape": "a4"}, trust_code=False).shape == A4


def test_overrides_apply_in_order() -> None:
    data = {"steps": 1, "rules": [{"match": "a"}, {"match": "b"}]}
    items = ["optim.lr=2e-4", "rules.1.bits=4", "steps=5", "steps=6", "note=a=b", "shape.name=box"]
    plan = build(Plan, override(data, items))
    assert plan.optim.lr == 2e-4
    assert [rule.bits for rule in plan.rules] == [8, 4]
    assert (plan.steps, plan.note, plan.shape) == (6, "a=b", Box())
    assert override(data, ["rules.0={match: c}"])["rules"][0] == {"match": "c"}
    assert data == {"steps": 1, "rules": [{"match": "a"}, {"match": "b"}]}


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("steps", "override 'steps': expected KEY=VALUE, as in optim.lr=2e-4"),
        ("=3", "override '=3': expected KEY=VALUE, as in optim.lr=2e-4"),
        ("steps.a=3", "override 'steps.a=3': steps is 1, not a section"),
        ("rules.2.bits=4", "override 'rules.2.bits=4': rules.2 must be a number below 2"),
        ("rules.x=4", "override 'rules.x=4': rules.x must be a number below 2"),
    ],
)
def test_bad_overrides(item: str, expected: str) -> None:
    data = {"steps": 1, "rules": [{"match": "a"}, {"match": "b"}]}
    assert message(lambda: override(data, [item])) == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: 1\na: 2", "key 'a' appears twice"),
        ("x:\n  a: 1\n  a: 2", "key 'a' appears twice"),
        ("1: a", "key 1 is not text"),
        ("a: [1", "not readable as YAML"),
        ("!!python/object:os.system {}", "not readable as YAML"),
        ("- 1", "expected a mapping at the top, got list"),
    ],
)
def test_bad_yaml_is_one_line_with_the_file(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    found = message(lambda: read_yaml(path))
    assert found.startswith(f"{path}: ")
    assert part in found
    assert "\n" not in found


def test_unreadable_files(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    assert message(lambda: read_yaml(path)) == f"{path}: no such config file"
    path.write_bytes(b"a: \xff\xfe")
    assert message(lambda: read_yaml(path)).startswith(f"{path}: not a text file in UTF-8")


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 2]}}, None),
        ({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 4}, "a.b: 1 here, 3 there"),
        ({"a": None}, {}, "a: None only here"),
        ({}, {"a": {"b": 1}}, "a: {'b': 1} only there"),
        ({"a": [1]}, {"a": [1, 2]}, "a: [1] here, [1, 2] there"),
    ],
)
def test_first_difference(ours: Any, theirs: Any, expected: str | None) -> None:
    assert first_difference(ours, theirs) == expected
