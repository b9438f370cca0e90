"""How properties differ, place by place: what a preview shows, and what is replaced or updated for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any, Literal, get_args, get_type_hints

from homelab.resources.work.plain import plain

DifferenceKind = Literal["add", "delete", "update"]


def differences(old: Any, new: Any, path: str = "") -> dict[str, DifferenceKind]:
    """Property paths with what happened there, the deepest places that differ. What is None isn't there.

    :param old: plain values.
    :param new: the same, which a preview may not know yet.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        pairs = {_joined(path, str(key)): (old.get(key), new.get(key)) for key in {**old, **new}}
    elif isinstance(old, list) and isinstance(new, list):
        pairs = {f"{path}[{index}]": pair for index, pair in enumerate(zip_longest(old, new))}
    else:
        return {} if old == new and isinstance(old, bool) == isinstance(new, bool) else {path: "update"}
    kinds: dict[str, DifferenceKind] = {}
    for inner, (before, after) in pairs.items():
        if before is not None and after is not None:
            kinds |= differences(before, after, inner)
        elif before is not after:
            kinds[inner] = "add" if before is None else "delete"
    return kinds


def fill_defaults(kind: Any, value: Any) -> Any:
    """The keys of a dataclass with its defaults in place of what isn't there, also further inside: a state that doesn't
    have a key yet is like one that has the key's default.

    :param kind: the value's declared type: a dataclass, or a list of one; of any other the value stays as it is.
    """
    declared: Any = next((part for part in (kind, *get_args(kind)) if dataclasses.is_dataclass(part)), None)
    if declared is not None and isinstance(value, list):
        return [fill_defaults(declared, item) for item in value]
    if declared is not None and isinstance(value, declared):
        value = dataclasses.asdict(value)
    if declared is None or not isinstance(value, Mapping):
        return value
    filled: dict[str, Any] = {}
    kinds = get_type_hints(declared)
    for field in dataclasses.fields(declared):
        item = value.get(field.name)
        if item is None and field.default_factory is not dataclasses.MISSING:
            item = field.default_factory()
        elif item is None and field.default is not dataclasses.MISSING:
            item = plain(field.default)
        filled[field.name] = fill_defaults(kinds[field.name], item)
    return filled


def top(path: str) -> str:
    """The property that a path begins with."""
    return path.split(".")[0].split("[")[0]


def _joined(path: str, key: str) -> str:
    if key.isidentifier():
        return f"{path}.{key}" if path else key
    quoted = key.replace("\\", "\\\\").replace('"', '\\"')
    return f'{path}["{quoted}"]'
