"""How properties differ, place by place: what a preview shows, and what is replaced or updated for it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any, Literal

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


def top(path: str) -> str:
    """The property that a path begins with."""
    return path.split(".")[0].split("[")[0]


def _joined(path: str, key: str) -> str:
    if key.isidentifier():
        return f"{path}.{key}" if path else key
    quoted = key.replace("\\", "\\\\").replace('"', '\\"')
    return f'{path}["{quoted}"]'
