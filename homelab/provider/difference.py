"""How properties differ, place by place: what a preview shows, and what is replaced or updated for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

DifferenceKind = Literal["add", "delete", "update"]


def differences(old: Any, new: Any, path: str = "") -> dict[str, DifferenceKind]:
    """Property paths with what happened there, the deepest places that differ. A key whose value is None is none.

    :param old: plain values.
    :param new: the same, which a preview may not know yet.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: dict[str, DifferenceKind] = {}
        for key in [*old, *(key for key in new if key not in old)]:
            had, has = old.get(key), new.get(key)
            where = _joined(path, str(key))
            if had is None or has is None:
                if had is not has:
                    found[where] = "add" if had is None else "delete"
            else:
                found |= differences(had, has, where)
        return found
    if isinstance(old, list) and isinstance(new, list):
        found = {}
        for index in range(max(len(old), len(new))):
            where = f"{path}[{index}]"
            if index >= len(old) or index >= len(new):
                found[where] = "add" if index >= len(old) else "delete"
            else:
                found |= differences(old[index], new[index], where)
        return found
    return {} if old == new and isinstance(old, bool) == isinstance(new, bool) else {path: "update"}


def top(path: str) -> str:
    """The property that a path begins with."""
    return path.split(".")[0].split("[")[0]


def _joined(path: str, key: str) -> str:
    if key.isidentifier():
        return f"{path}.{key}" if path else key
    quoted = key.replace("\\", "\\\\").replace('"', '\\"')
    return f'{path}["{quoted}"]'
