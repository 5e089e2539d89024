"""A plan that reads well from the formats of single layers: layers whose names differ in numbers
alone are a family, and share a rule as far as they share a format.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from genvis.quant.plan import Plan, Rule


def plan_of(chosen: Mapping[str, Rule]) -> Plan:
    """A plan that gives each layer what its rule says; of the rules themselves `match` is not read.

    chosen must name every layer that a plan could quantize, those that stay as they are with a rule
    without changes. ValueError if there is none.
    """
    families: dict[tuple[str, ...], dict[str, Rule]] = {}
    for name, rule in chosen.items():
        pattern = tuple(r"\d+" if part.isdigit() else re.escape(part) for part in name.split("."))
        families.setdefault(pattern, {})[name] = replace(rule, match="")
    rules = []
    for pattern, members in families.items():
        named: dict[Rule, list[str]] = {}
        for name, rule in members.items():
            named.setdefault(rule, []).append(name)
        usual = max(named, key=lambda rule: len(named[rule]))
        for rule, names in named.items():
            if rule != usual:
                rules.append(replace(rule, match=_exactly(names)))
        whole = r"\.".join(pattern) if len(members) > 1 else re.escape(next(iter(members)))
        rules.append(replace(usual, match=whole))
    return Plan(rules=tuple(rules))


def _exactly(names: list[str]) -> str:
    """These names and no others: (a|b) at the one place where they differ, or else name by name."""
    columns = list(zip(*(name.split(".") for name in names), strict=True))
    different = [i for i, column in enumerate(columns) if len(set(column)) > 1]
    if len(different) > 1:
        return "|".join(map(re.escape, names))
    parts = [re.escape(column[0]) for column in columns]
    for i in different:
        parts[i] = f"({'|'.join(columns[i])})"
    return r"\.".join(parts)
