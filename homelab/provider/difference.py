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
        kinds: dict[str, DifferenceKind] = {}
        for key in [*old, *(key for key in new if key not in old)]:
            before, after = old.get(key), new.get(key)
            inner = _joined(path, str(key))
            if before is None or after is None:
                if before is not after:
                    kinds[inner] = "add" if before is None else "delete"
            else:
                kinds |= differences(before, after, inner)
        return kinds
    if isinstance(old, list) and isinstance(new, list):
        kinds = {}
        for index in range(max(len(old), len(new))):
            inner = f"{path}[{index}]"
            if index >= len(old) or index >= len(new):
                kinds[inner] = "add" if index >= len(old) else "delete"
            else:
                kinds |= differences(old[index], new[index], inner)
        return kinds
    return {} if old == new and isinstance(old, bool) == isinstance(new, bool) else {path: "update"}


def top(path: str) -> str:
    """The property that a path begins with."""
    return path.split(".")[0].split("[")[0]


def _joined(path: str, key: str) -> str:
    if key.isidentifier():
        return f"{path}.{key}" if path else key
    quoted = key.replace("\\", "\\\\").replace('"', '\\"')
    return f'{path}["{quoted}"]'
