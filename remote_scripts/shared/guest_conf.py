"""A guest's configuration as Proxmox VE keeps it: its own lines stand above the first section, which is a snapshot or
what waits for its next start. And the resource mappings that one may name.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

from remote_scripts.shared.container_conf import BLANKS, SECTION
from remote_scripts.shared.pmxcfs import text_of
from remote_scripts.tools.system import System

VMS = "/etc/pve/qemu-server"
MAPPINGS = "/etc/pve/mapping/pci.cfg"
#: qemu-server's, a line for each PCI function that a VM runs with.
RESERVATIONS = "/run/qemu-server/pci-id-reservations"
# Proxmox VE reads bytes: letters and blanks beyond ASCII are neither (parse_vm_config; PVE::SectionConfig).
_OPTION = re.compile(r"([a-z][a-z_-]*\d*):\s*(.+?)\s*", re.ASCII)
_HEADING = re.compile(r"(\S+)\s*", re.ASCII)
_PROPERTY = re.compile(r"\s+(\S+)(?:\s+(.*\S))?\s*", re.ASCII)
_ADDRESS = r"(?:[a-f0-9]{4,}:)?[a-f0-9]{2}:[a-f0-9]{2}(?:\.[a-f0-9])?"
# What every version takes in a hostpci option.
_OF_HOSTPCI = re.compile(
    rf"(?:host=)?{_ADDRESS}(?:;{_ADDRESS})*|mapping=[A-Za-z][A-Za-z0-9_-]+|romfile=[^,;=]+|mdev=[^/.:=]+"
    r"|(?:pcie|rombar|x-vga|legacy-igd)=(?:[01]|(?i:on|off|yes|no|true|false))"
)


def own_lines(text: str) -> list[str]:
    """The lines above a configuration's first section, without blanks at their ends."""
    lines = itertools.takewhile(lambda line: not SECTION.fullmatch(line), text.split("\n"))
    return [line.rstrip(BLANKS) for line in lines]


def options(lines: Iterable[str]) -> list[tuple[str, str]]:
    """The options of a configuration's lines: key and value. A line without a value is none."""
    return [(match[1], match[2]) for line in lines if (match := _OPTION.fullmatch(line))]


def option_of(lines: Iterable[str], key: str) -> str:
    """An option of a configuration's lines; empty: it has none. One that stands several times has a line each."""
    return "\n".join(value for name, value in options(lines) if name == key)


def devices(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The hostpci options of a VM that count. Of one key the last does that Proxmox VE understands. Where it isn't
    certain that each version does, an earlier one counts as well.

    :param pairs: options, those that wait for the next start last.
    """
    counting: list[tuple[str, str]] = []
    for key, value in pairs:
        if not key.startswith("hostpci"):
            continue
        parts = [part for part in value.split(",") if part.strip()]
        keys = {part.partition("=")[0] if "=" in part else "host" for part in parts}
        if len(keys) == len(parts) and all(map(_OF_HOSTPCI.fullmatch, parts)):
            counting = [pair for pair in counting if pair[0] != key]
        counting.append((key, value))
    return counting


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
    """Of each hostpci option that counts among these lines the resource mapping, or all addresses that it names."""
    for _, value in devices(options(lines)):
        parts = [part.strip() for part in value.split(",")]
        mapping = next((part.removeprefix("mapping=") for part in parts if part.startswith("mapping=")), "")
        hosts = [part.removeprefix("host=") for part in parts if part and ("=" not in part or part.startswith("host="))]
        yield mapping, ";".join(hosts)


def mappings(text: str) -> dict[str, list[tuple[str, str]]]:
    """The resource mappings: name -> its properties, key and value. A mapping ends with an empty line: until then no
    line is another one's heading (PVE::SectionConfig, parse_config).

    :param text: of MAPPINGS.
    """
    by_name: dict[str, list[tuple[str, str]]] = {}
    properties: list[tuple[str, str]] | None = None
    for line in text.split("\n"):
        if not line:
            properties = None
        elif line.lstrip().startswith("#"):
            continue
        elif properties is None:
            if match := _HEADING.fullmatch(line):
                properties = by_name[match[1]] = []
        elif match := _PROPERTY.fullmatch(line):
            properties.append((match[1], match[2] or ""))
    return by_name


def mapped(text: str, name: str, node: str) -> list[str] | None:
    """What each of a mapping's lines for a node stands for: an address, or several; None: there is no such mapping.

    :param text: of MAPPINGS.
    :param node: empty: it isn't known, and may be any.
    """
    properties = mappings(text).get(name)
    maps = [value.split(",") for key, value in properties or () if key == "map"]
    entries = [dict(part.partition("=")[::2] for part in parts) for parts in maps]
    paths = [entry.get("path", "") for entry in entries if node in ("", entry.get("node"))]
    return None if properties is None else paths
