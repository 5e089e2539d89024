"""Strict configs: frozen dataclasses, open choices by name, YAML files with dotted overrides.

One loader serves files, overrides and checkpoints: `build` turns plain data into a config or raises
a `ConfigError` with one line per problem; `dump` is its exact inverse. Needs no torch.
"""

import contextlib
import dataclasses
import difflib
import functools
import importlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import yaml
from pydantic import ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import core_schema

T = TypeVar("T")
Location = tuple[str | int, ...]


class ConfigError(ValueError):
    """A config that does not say what it must: one line per problem, each with its path."""


@dataclass_transform(kw_only_default=True, frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Frozen, keyword-only dataclass that refuses unknown keys and wrong types."""
    rules = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=False)
    made: Any = pydantic_dataclass(frozen=True, kw_only=True, config=rules)(cls)
    validating = made.__init__

    @functools.wraps(validating)
    def init(self: Any, *args: Any, **fields: Any) -> None:
        with _one_line_errors():
            try:
                validating(self, *args, **fields)
            except ValidationError as error:
                raise _ProblemsError(list(_flatten(made, error))) from error

    made.__init__ = init
    return made


class Table:
    """Names for what a config may choose: {"dit": "genvis.backbones.dit:DiTConfig"}.

    An entry is a config class or a constant of one, imported when used. `Annotated[Base, TABLE]`
    makes a field an open choice: `{name: dit, depth: 4}`, or `{name: "my_lab.nets:MyConfig", ...}`
    for a class that is in no table. Fields without a name are those of `default`, where there is
    one, and it is dumped without its name.
    """

    def __init__(self, kind: str, entries: Mapping[str, str], default: str | None = None) -> None:
        self.kind = kind
        self.entries = dict(entries)
        self.default = default

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def resolve(self, name: str, trust_code: bool = True) -> Any:
        """The class or constant behind `name`; a `module:Class` outside genvis only if trusted."""
        target = self.entries.get(name, name)
        if ":" not in target:
            known = ", ".join(self.entries)
            raise ConfigError(f"{name!r} is not one of {known}{_nearest(name, self.entries)}")
        module, _, attribute = target.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), attribute)):
            raise ConfigError(f"{name!r} is not of the form module:Class")
        if name not in self.entries and not trust_code and module.partition(".")[0] != "genvis":
            raise ConfigError(
                f"{name!r} would import code that is not part of genvis; "
                "pass trust_code=True to allow it"
            )
        try:
            return getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{name!r} needs the module {error.name!r}, which is not installed"
            ) from error
        except AttributeError as error:
            raise ConfigError(f"the module {module!r} has no {attribute!r}") from error

    def build(self, data: Any, *, trust_code: bool = True) -> Any:
        """The config that `data` = {"name": ..., fields...} chooses."""
        with _one_line_errors():
            return self._validate(data, trust_code)

    def dump(self, value: Any) -> dict[str, Any]:
        """Plain data that `build` turns back into an equal config."""
        name = self.name_of(value)
        return dump(value) if name == self.default else {"name": name, **dump(value)}

    def name_of(self, value: Any) -> str:
        """The name of a config or its class: its entry, else module:Class."""
        kind = value if isinstance(value, type) else type(value)
        target = f"{kind.__module__}:{kind.__qualname__}"
        return next((name for name, entry in self.entries.items() if entry == target), target)

    def _validate(self, data: Any, trust_code: bool) -> Any:
        if isinstance(data, str):
            data = {"name": data}
        if dataclasses.is_dataclass(data) and not isinstance(data, type):
            return data
        if isinstance(data, Mapping) and self.default and "name" not in data:
            data = {"name": self.default, **data}
        if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
            raise ConfigError(f"expected a {self.kind} as {{name: ..., fields...}}, got {data!r}")
        fields = {key: value for key, value in data.items() if key != "name"}
        try:
            chosen = self.resolve(data["name"], trust_code)
        except ConfigError as error:
            raise _ProblemsError([(("name",), str(error))]) from error
        cls = chosen if isinstance(chosen, type) else type(chosen)
        if getattr(cls, "__pydantic_config__", {}).get("extra") != "forbid":
            problem = f"{data['name']!r} is not a config; its class needs the decorator @config"
            raise _ProblemsError([(("name",), problem)])
        if not isinstance(chosen, type):  # a named constant: its fields are the defaults
            fields = {**dump(chosen), **fields}
        return _validate(cls, fields, trust_code)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        def validate(data: Any, info: core_schema.ValidationInfo) -> Any:
            return self._validate(data, (info.context or {}).get("trust_code", True))

        return core_schema.with_info_plain_validator_function(
            validate, serialization=core_schema.plain_serializer_function_ser_schema(self.dump)
        )


def build(cls: type[T], data: Mapping[str, Any], *, trust_code: bool = True) -> T:
    """A `cls` from plain data (JSON types). Raises `ConfigError`, one line per problem."""
    with _one_line_errors():
        return _validate(cls, data, trust_code)


def dump(value: Any) -> dict[str, Any]:
    """Plain data (JSON types) of a config; `build(type(value), dump(value)) == value`."""
    data: dict[str, Any] = TypeAdapter(type(value)).dump_python(value, mode="json")
    return data


def load(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """A `cls` from a YAML file and overrides such as `optim.lr=2e-4`, applied in order."""
    return build(cls, override(read_yaml(path), overrides))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `ConfigError` if it is missing or holds something else."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8: {error}") from error
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping at the top, got {type(data).__name__}")
    return data


def parse_yaml(text: str, source: str = "yaml") -> Any:
    """YAML 1.2 scalars (`2e-4` is a number, `no` is text); a key given twice is an error."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader, see below
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{source}: not readable as YAML: {' '.join(str(error).split())}"
        ) from error


def write_yaml(data: Mapping[str, Any]) -> str:
    """The YAML text of plain data, keys in the order given."""
    return yaml.dump(
        dict(data), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100
    )


def override(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`data` with each `a.b=value` set; values are YAML, list items are addressed by number."""
    result: dict[str, Any] = json.loads(json.dumps(data))
    for item in overrides:
        path, separator, text = item.partition("=")
        if not separator or not path:
            raise ConfigError(f"override {item!r}: expected KEY=VALUE, as in optim.lr=2e-4")
        *parents, last = path.split(".")
        section: Any = result
        for depth, key in enumerate(parents):
            section = _enter(section, key, ".".join(parents[: depth + 1]), item)
        value = parse_yaml(text, f"override {item!r}")
        if isinstance(section, list):
            section[_index(section, last, path, item)] = value
        else:
            section[last] = value
    return result


def check_arguments(given: Iterable[str], known: Iterable[str], owner: str) -> None:
    """ConfigError names the first given argument that `owner`, a released class, does not have."""
    known = list(known)
    for name in given:
        if name not in known:
            hint = _nearest(name, known) or f"; it has {', '.join(known)}"
            raise ConfigError(f"{owner} has no argument {name!r}{hint}")


def renamed(given: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Those of the given values that `names`, theirs to ours, speaks of."""
    return {ours: given[theirs] for theirs, ours in names.items() if theirs in given}


def first_difference(ours: Any, theirs: Any, path: str = "") -> str | None:
    """The path and values of the first place where two plain configs differ, or None."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in [*ours, *(k for k in theirs if k not in ours)]:
            where = f"{path}.{key}" if path else str(key)
            if key not in ours or key not in theirs:
                given, sides = (ours, "here") if key in ours else (theirs, "there")
                return f"{where}: {given[key]!r} only {sides}"
            found = first_difference(ours[key], theirs[key], where)
            if found:
                return found
        return None
    return None if ours == theirs else f"{path}: {ours!r} here, {theirs!r} there"


def _enter(section: Any, key: str, path: str, item: str) -> Any:
    if isinstance(section, list):
        return section[_index(section, key, path, item)]
    section = section.setdefault(key, {})
    if not isinstance(section, dict | list):
        raise ConfigError(f"override {item!r}: {path} is {section!r}, not a section")
    return section


def _index(section: list[Any], key: str, path: str, item: str) -> int:
    if not key.isdigit() or int(key) >= len(section):
        raise ConfigError(f"override {item!r}: {path} must be a number below {len(section)}")
    return int(key)


class _ProblemsError(ValueError):
    """Problems of a nested config, on their way to one list with full paths."""

    def __init__(self, problems: list[tuple[Location, str]]) -> None:
        super().__init__("; ".join(message for _, message in problems))
        self.problems = problems


def _validate(cls: type[T], data: Mapping[str, Any], trust_code: bool) -> T:
    try:
        text = json.dumps(data)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{cls.__name__}: not plain data: {error}") from error
    try:  # strict JSON mode: lists become tuples, but true is not 1 and "1" is not 1
        return TypeAdapter(cls).validate_json(text, strict=True, context={"trust_code": trust_code})
    except ValidationError as error:
        raise _ProblemsError(list(_flatten(cls, error))) from error


def _flatten(cls: type, error: ValidationError) -> Iterator[tuple[Location, str]]:
    for item in error.errors():
        cause = item.get("ctx", {}).get("error")
        where = tuple(part for part in item["loc"] if not (isinstance(part, str) and "[" in part))
        if isinstance(cause, _ProblemsError):
            yield from ((where + inner, message) for inner, message in cause.problems)
        elif isinstance(cause, Exception):
            yield where, str(cause)
        elif item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            owner = _owner(cls, where[:-1])
            names = [field.name for field in dataclasses.fields(owner)] if owner else []
            hint = _nearest(str(where[-1]), names) or (
                f"; it has {', '.join(names)}" if names else ""
            )
            yield (
                where[:-1],
                f"{owner.__name__ if owner else 'config'} has no field {str(where[-1])!r}{hint}",
            )
        elif item["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
            few = isinstance(where[-1], int)
            yield where, "missing: too few items" if few else "missing, and it has no default"
        else:
            yield where, f"{item['msg'].replace('Input should', 'should')}, got {item['input']!r}"


def _owner(cls: type, where: Location) -> Any:
    """The dataclass at `where` inside `cls`, through optional and tuple fields."""
    for part in where:
        if isinstance(part, int):
            continue
        hint = next((f.type for f in dataclasses.fields(cls) if f.name == part), None)
        candidates = [hint, *getattr(hint, "__args__", ())]
        found = next(
            (c for c in candidates if isinstance(c, type) and dataclasses.is_dataclass(c)), None
        )
        if found is None:
            return None
        cls = found
    return cls


def _nearest(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except _ProblemsError as error:
        lines = [
            f"{'.'.join(map(str, where))}: {text}" if where else text
            for where, text in error.problems
        ]
        raise ConfigError("\n".join(lines)) from None


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    # quotes exactly what the loader would misread
    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|)$", ["~", "n", ""]),
    ("bool", r"^(?:true|false)$", list("tf")),
    ("int", r"^[-+]?[0-9][0-9_]*$", list("-+0123456789")),
    (
        "float",
        r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$",
        list("-+.0123456789"),
    ),
    ("float", r"^(?:[-+]?\.inf|\.nan)$", list("-+.")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(node.value.replace("_", ""))  # decimal: 010 is ten


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key_node, value in node.value:
        key = loader.construct_object(key_node)
        problem = "is not text" if not isinstance(key, str) else "appears twice"
        if not isinstance(key, str) or key in result:
            message = f"key {key!r} {problem}"
            raise yaml.constructor.ConstructorError(None, None, message, key_node.start_mark)
        result[key] = loader.construct_object(value, deep=True)
    return result


_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
