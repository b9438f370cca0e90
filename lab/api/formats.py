"""Property strings such as `virtio=BC:24:11:00:00:01,bridge=vmbr0`, and sizes, as Proxmox VE prints them."""

from __future__ import annotations

import re

from homelab.guest.options import PropertyFormat, tables

from .errors import FormatError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def format_properties(name: str, values: dict[str, str]) -> str:
    """A property string as Proxmox VE prints it: the default key first and bare, then required keys, then the rest."""
    form: PropertyFormat = tables().formats[name]
    left = dict(values)
    parts: list[str] = []
    if form.default in left and form.default is not None:
        first = left.pop(form.default)
        parts.append(f"{first}={left.pop(form.aliases)}" if form.aliases and form.aliases in left else first)
    required = sorted(key for key in left if key in form.keys and not form.keys[key].optional)
    parts += [f"{key}={left[key]}" for key in [*required, *sorted(set(left) - set(required))]]
    return ",".join(parts)


def size_of(text: str) -> int:
    """Bytes of a size such as `32G`; a bare number counts bytes."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise FormatError(f"invalid size format '{text}'\n")
    return int(float(match[1]) * _UNITS[match[2]])


def format_size(size: int) -> str:
    """A size in the largest unit that divides it (`1G`, `528K`); nothing is `0T`, as a real node has it."""
    unit = "TGMK"
    for letter in unit:
        if size % _UNITS[letter] == 0:
            return f"{size // _UNITS[letter]}{letter}"
    return str(size)
