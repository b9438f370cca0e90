"""A guest's configuration as Proxmox VE keeps it: its own lines stand above the first section, which is a snapshot or
what waits for its next start.
"""

from __future__ import annotations

from collections.abc import Iterable

from remote_scripts.pve import vm_conf
from remote_scripts.pve.container_conf import sections_of
from remote_scripts.pve.guest_kinds import VM, Kind
from remote_scripts.pve.pmxcfs import NODES, this_node
from remote_scripts.pve.vm_conf import options
from remote_scripts.tools.system import System

VMS = "/etc/pve/qemu-server"
MAPPINGS = "/etc/pve/mapping/pci.cfg"


def option_of(lines: Iterable[str], key: str) -> str:
    """An option of a configuration's lines; empty: it has none. One that stands several times has a line each."""
    return "\n".join(value for name, value in options(lines) if name == key)


def lines_of(system: System, kind: Kind, vmid: str) -> list[str]:
    """The lines of the configuration of a guest of this node above its first section, without blanks at their ends;
    none where there is no such guest.

    :raises Failure: it can't be read.
    """
    return sections_of(system.files.need_text(f"/etc/pve/{kind.folder}/{vmid}.conf"))[""]


def lines_of_vm(system: System, vmid: str) -> list[str]:
    """The same of a VM."""
    return lines_of(system, VM, vmid)


def options_of(system: System, kind: Kind, node: str, vmid: int) -> dict[str, str]:
    """The options of a guest on any node.

    :raises Failure: its configuration can't be read.
    """
    return dict(options(sections_of(system.files.need_text(f"{NODES}/{node}/{kind.folder}/{vmid}.conf"))[""]))


def places_of_vm(system: System, vmid: str) -> list[list[str]]:
    """The slots and functions of this host that each hostpci option of a VM may give.

    :raises Failure: its configuration or the mappings can't be read.
    """
    entries = vm_conf.mapping_entries(system.files.need_text(MAPPINGS))
    node = this_node(system).name
    return [vm_conf.places(device, entries, node) for device in vm_conf.given_devices(lines_of_vm(system, vmid))]


def option_of_vm(system: System, vmid: str, key: str) -> str:
    """An option of a VM as it is for its next start; empty: it has none, or there is no such VM.

    :raises Failure: its configuration can't be read.
    """
    return option_of(lines_of_vm(system, vmid), key)
