"""Proxmox VE's property strings, such as `mapping=rtx5090,pcie=1`, and PCI addresses in them. Pure: both halves read
them by this module.
"""

from __future__ import annotations

import re

# Option -> the key of a property that is written without one (PVE::JSONSchema, `default_key`).
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


def parse(option: str, value: str) -> dict[str, str]:
    """The properties of an option: `parse("hostpci0", "01:00,pcie=1")` is `{"host": "01:00", "pcie": "1"}`."""
    name = _NUMBERED.sub("", option)
    default = next((key for start, key in _DEFAULT_KEYS if start == name), "file")
    parts = (part.partition("=") for part in value.split(",") if part.strip())
    return {key if equals else default: content if equals else key for key, equals, content in parts}


def address(text: str) -> str:
    """The address with its domain, `0000:01:00.0` for `01:00.0`; a slot's stays a slot's."""
    text = text.lower()
    return text if text.count(":") == 2 else f"0000:{text}"


def functions_of(path: str) -> list[str]:
    """The parts of a mapping's path, or of a raw `host`: slots and functions, each with its domain."""
    return [address(part) for part in path.split(";") if part]


def overlap(first: str, second: str) -> bool:
    """Whether two paths of a mapping have a function in common; a slot stands for all of its functions."""
    return any(
        a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.")
        for a in functions_of(first)
        for b in functions_of(second)
    )
