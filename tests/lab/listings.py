"""A scenario out of what people post of a real machine: its IOMMU groups, and `lspci -nn`, whole or in part.

What no listing says is filled in, so that the machine can exist: which bridge leads to which bus, by the order in which Linux numbers buses; a disk to
boot from and a network card, in groups of their own where none is listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.scenario import Scenario, scenario_from

_GROUP = re.compile(r"group:?\s+(\d+)|iommu_groups/(\d+)/", re.I)
_FUNCTION = re.compile(
    r"\b(?:0000:)?([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])\b"
    r"(?:.*? \[([0-9a-f]{4})\]: (.*) \[([0-9a-f]{4}):([0-9a-f]{4})\](?: \(rev (..)\))?(?: \(prog-if (..))?)?"
)
_DISPLAY, _BRIDGE, _DISK, _NETWORK = "0300", "0604", ("0108", "0106"), ("0200",)


def scenario_of(listing: Path) -> Scenario:
    """The machine of which this file lists the groups; files `lspci*.txt` beside it say more."""
    entries: dict[str, dict[str, Any]] = {}
    group = 0
    for line in listing.read_text(encoding="utf-8").splitlines():
        if header := _GROUP.search(line):
            group = int(header[1] or header[2])
        for address, about in _functions(line):
            entries[address] = {"group": group, "vendor": "ffff", "device": "ffff", "class": "0880"} | about
    for path in sorted(listing.parent.glob("lspci*.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            for address, about in _functions(line):
                entries.get(address, {}).update(about)
    _find_parents(entries)
    _own(entries, _DISK, "0000:fd:00.0")["blocks"] = [{"name": "sda", "use": "root"}]
    _own(entries, _NETWORK, "0000:fe:00.0")["nets"] = [{"name": "nic0", "bridge": "vmbr0"}]
    displays = [entry for entry in entries.values() if entry["class"] == _DISPLAY]
    if displays:
        min(displays, key=lambda entry: bool(entry["vendor"] == "10de"))["boot-vga"] = True
    bridges = {
        entry["vendor"] for address, entry in entries.items() if address[:7] == "0000:00" and entry["class"] == "0600"
    }
    vendor = "GenuineIntel" if "8086" in bridges else "AuthenticAMD"
    data = {
        "title": listing.parent.name, "kernels": ["6.17.2-1-pve"], "cpu": {"vendor": vendor, "model": "a processor"},
        "pci": [{"address": address, **entry} for address, entry in sorted(entries.items())],
    }  # fmt: skip
    return scenario_from(data, listing.name, listing.parent.name)


def _functions(line: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The function that a line is about, and what it says of it."""
    if match := _FUNCTION.search(line):
        names = ("class", "name", "vendor", "device", "rev", "prog-if")
        about = {name: text for name, text in zip(names, match.groups()[1:], strict=True) if text}
        yield f"0000:{match[1]}", about | ({"vendor-name": ""} if about else {})


def _find_parents(entries: dict[str, dict[str, Any]]) -> None:
    """Set each function's bridge: Linux numbers buses depth first, one number for each bridge it meets."""
    last = 0

    def scan(bus: str) -> None:
        nonlocal last
        for bridge in sorted(one for one in entries if one[:7] == bus and entries[one]["class"] == _BRIDGE):
            last += 1
            behind = [one for one in entries if one[:7] == f"0000:{last:02x}"]
            for one in behind:
                entries[one]["parent"] = bridge
            if behind:
                scan(f"0000:{last:02x}")

    scan("0000:00")


def _own(entries: dict[str, dict[str, Any]], classes: tuple[str, ...], address: str) -> dict[str, Any]:
    """The first function of one of these classes; one at this address where there is none."""
    found = next((entry for name in classes for entry in entries.values() if entry["class"] == name), None)
    if found is None:
        group = max(entry["group"] for entry in entries.values()) + 1
        found = entries[address] = {"group": group, "vendor": "8086", "device": "125c", "class": classes[0]}
    return found
