"""What two property strings of Proxmox VE say the same, slots, and marks of guests."""

from __future__ import annotations

from remote_scripts.shared.properties import address, parse


def same(option: str, first: str | None, second: str | None) -> bool:
    """Whether two values of an option mean the same; None: the option is missing. The order of properties doesn't
    count, nor a PCI domain 0000 left out."""
    if first is None or second is None:
        return first is second
    return first == second or _normal(option, first) == _normal(option, second)


def _normal(option: str, value: str) -> dict[str, str]:
    properties = parse(option, value)
    if "host" in properties:
        properties["host"] = ";".join(address(part) for part in properties["host"].split(";"))
    return properties


def slot_of(text: str) -> str:
    """The slot of a function: `0000:01:00` for `01:00.1`."""
    return address(text).partition(".")[0]


def mark_of(stack: str, name: str = "") -> str:
    """The mark in the description of a guest that a stack has created.

    :param stack: `project/stack`.
    :param name: of the guest in the settings; empty: what the marks of all the stack's guests begin with.
    """
    return f"Created by Pulumi: {stack}/{name}"
