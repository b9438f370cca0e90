"""A VM's options and the resource mappings that one may name, as Proxmox VE reads them. Pure: both halves read them by
this module.

tests/vm_configurations.yaml and tests/mapping_files.yaml have the results, which are those of PVE::QemuServer
(parse_vm_config, vmconfig_apply_pending) and PVE::Mapping::PCI.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from remote_scripts.pve.booleans import is_true
from remote_scripts.pve.properties import functions_of, overlap, parse
from remote_scripts.pve.sections import sections

# Proxmox VE reads bytes: letters and blanks beyond ASCII are neither (parse_vm_config).
_OPTION = re.compile(r"([a-z][a-z_-]*\d*):\s*(.+?)\s*", re.ASCII)


def options(lines: Iterable[str]) -> list[tuple[str, str]]:
    """The options of a configuration's lines: key and value. A line without a value is none."""
    return [(match[1], match[2]) for line in lines if (match := _OPTION.fullmatch(line))]


def devices(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The hostpci options of a VM. If an owner has written one twice, both count: which one Proxmox VE understands
    depends on its version.
    """
    return [(key, value) for key, value in pairs if key.startswith("hostpci")]


def given_devices(lines: Iterable[str]) -> list[dict[str, str]]:
    """The properties of each hostpci option among these lines."""
    return [parse(key, value) for key, value in devices(options(lines))]


def mappings(text: str) -> dict[str, list[tuple[str, str]]]:
    """The resource mappings: name -> its properties, key and value.

    :param text: of /etc/pve/mapping/pci.cfg.
    """
    return {section.name: section.properties for section in sections(text)}


def mapping_entries(text: str) -> dict[str, list[dict[str, str]]]:
    """The resource mappings: name -> its entries, one a device and node.

    :param text: of /etc/pve/mapping/pci.cfg.
    """
    return {
        name: [parse("map", value) for key, value in properties if key == "map"]
        for name, properties in mappings(text).items()
    }


def migrating(text: str) -> set[str]:
    """The resource mappings whose devices migrate with a running VM (live-migration-capable).

    :param text: of /etc/pve/mapping/pci.cfg.
    """
    return {
        name
        for name, properties in mappings(text).items()
        if any(key == "live-migration-capable" and is_true(value) for key, value in properties)
    }


def places(option: Mapping[str, str], entries: Mapping[str, list[dict[str, str]]], node: str) -> list[str]:
    """The slots and functions that a hostpci option may give; none where its mapping isn't there, with which a VM
    doesn't start.

    :param option: its properties.
    :param entries: of `mapping_entries`.
    :param node: empty: it isn't known, and may be any.
    """
    if "mapping" not in option:
        return functions_of(option.get("host", ""))
    here = (entry for entry in entries.get(option["mapping"], ()) if node in ("", entry.get("node")))
    return [part for entry in here for part in functions_of(entry.get("path", ""))]


def names_card(option: Mapping[str, str], entries: Mapping[str, list[dict[str, str]]], node: str, path: str) -> bool:
    """Whether a hostpci option gives a function of a card, by its address or by a mapping; the parameters are those of
    `places`.

    :param path: of the card: its slot, or its functions joined by `;`.
    """
    return overlap(";".join(places(option, entries, node)), path)
