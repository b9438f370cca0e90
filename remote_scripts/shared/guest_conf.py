"""A guest's configuration as Proxmox VE keeps it: its own lines stand above the first section, which is a snapshot or
what waits for its next start. And the resource mappings that one may name.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

from remote_scripts.shared.container_conf import SECTION
from remote_scripts.shared.pmxcfs import text_of
from remote_scripts.tools.system import System

VMS = "/etc/pve/qemu-server"
MAPPINGS = "/etc/pve/mapping/pci.cfg"
#: qemu-server's, a line for each PCI function that a VM runs with.
RESERVATIONS = "/run/qemu-server/pci-id-reservations"


def own_lines(text: str) -> list[str]:
    """The lines above a configuration's first section, without blanks at their ends."""
    lines = (line.rstrip() for line in text.split("\n"))
    return list(itertools.takewhile(lambda line: not SECTION.fullmatch(line), lines))


def option_of(lines: Iterable[str], key: str) -> str:
    """An option of a configuration's lines; empty: it has none. One that stands several times has a line each."""
    return "\n".join(match[1].strip() for line in lines if (match := re.match(rf"{key}:(.*)$", line)))


def lines_of_vm(system: System, vmid: str) -> list[str]:
    """The lines of a VM's configuration above its first section; none where there is no such VM.

    :raises Failure: it can't be read.
    """
    return own_lines(text_of(system, f"{VMS}/{vmid}.conf"))


def option_of_vm(system: System, vmid: str, key: str) -> str:
    """An option of a VM as it is for its next start; empty: it has none, or there is no such VM.

    :raises Failure: its configuration can't be read.
    """
    return option_of(lines_of_vm(system, vmid), key)


def given_devices(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Of each hostpci option among these lines the resource mapping, or the addresses that it names."""
    for line in lines:
        if option := re.match(r"hostpci\d+:(.*)$", line):
            parts = (part if "=" in part else f"host={part}" for part in map(str.strip, option[1].split(",")))
            properties = dict(part.partition("=")[::2] for part in parts)
            yield properties.get("mapping", ""), properties.get("host", "")


def mapping(text: str, name: str) -> list[list[str]] | None:
    """The words of each line that a resource mapping has; None: there is none of that name.

    :param text: of MAPPINGS.
    """
    sections: dict[str, list[list[str]]] = {}
    lines: list[list[str]] = []
    for line in text.split("\n"):
        words = line.split()
        if words and line[0] not in " \t#":
            lines = sections.setdefault(words[0], [])
        elif words:
            lines.append(words)
    return sections.get(name)


def mapped(text: str, name: str, node: str) -> list[str] | None:
    """What each of a mapping's lines for a node stands for: an address, or several; None: there is no such mapping.

    :param text: of MAPPINGS.
    :param node: empty: it isn't known, and may be any.
    """
    lines = mapping(text, name)
    maps = (words[1].split(",") for words in lines or () if words[0] == "map" and len(words) > 1)
    entries = (dict(part.partition("=")[::2] for part in parts) for parts in maps)
    paths = [entry.get("path", "") for entry in entries if node in ("", entry.get("node"))]
    return None if lines is None else paths
