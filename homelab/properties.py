"""Proxmox VE's property strings, such as `mapping=rtx5090,pcie=1`, and PCI addresses as they stand in them."""

from __future__ import annotations

import re

# The key that a value without one is for, by option (PVE::JSONSchema, `default_key`).
_DEFAULT_KEYS = (
    ("hostpci", "host"),
    ("machine", "type"),
    ("agent", "enabled"),
    ("memory", "current"),
    ("vga", "type"),
    ("dev", "path"),
    ("mp", "volume"),
)
_NUMBERED = re.compile(r"\d+$")
# How Proxmox VE writes booleans (PVE::JSONSchema::parse_boolean), whatever their case.
TRUE, FALSE = frozenset(("1", "on", "yes", "true")), frozenset(("0", "off", "no", "false"))


def parse(option: str, value: str) -> dict[str, str]:
    """`parse("hostpci0", "01:00,pcie=1")` -> `{"host": "01:00", "pcie": "1"}`."""
    name = _NUMBERED.sub("", option)
    default = next((key for start, key in _DEFAULT_KEYS if start == name), "file")
    parts = (part.partition("=") for part in value.split(",") if part)
    return {key if found else default: content if found else key for key, found, content in parts}


def same(option: str, one: str | None, other: str | None) -> bool:
    """Do two values of an option mean the same? The order of properties doesn't count, nor a PCI domain 0000 left
    out."""
    if one is None or other is None:
        return one is other
    return one == other or _normal(option, one) == _normal(option, other)


def _normal(option: str, value: str) -> dict[str, str]:
    found = parse(option, value)
    if "host" in found:
        found["host"] = ";".join(address(part) for part in found["host"].split(";"))
    return found


def address(text: str) -> str:
    """`0000:01:00.0` for `01:00.0`; a slot stays a slot."""
    text = text.lower()
    return text if text.count(":") == 2 else f"0000:{text}"


def functions_of(path: str) -> list[str]:
    """The parts of a mapping's path, or of a raw `host`: slots and functions, each with its domain."""
    return [address(part) for part in path.split(";") if part]


def overlap(one: str, other: str) -> bool:
    """Have two such paths a function in common? A slot stands for all of its functions."""
    return any(
        a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.") for a in functions_of(one) for b in functions_of(other)
    )


def slot_of(text: str) -> str:
    """`0000:01:00` for `01:00.1`."""
    return address(text).partition(".")[0]
