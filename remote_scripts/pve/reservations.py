"""qemu-server's reservations: which VM runs with a PCI function, or starts with it (PVE::QemuServer::PCI). Pure:
both halves read them by this module.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

FILE = "/run/qemu-server/pci-id-reservations"
_LINE = re.compile(r"^(\S+)\s(\d+)\s(time|pid):(\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Reservation:
    """`address`: of the function; `runs`: the VM has been started: then `value` is its process, else the time until
    which it may start, in seconds since 1970.
    """

    address: str
    vmid: int
    runs: bool
    value: int


def parse(text: str) -> list[Reservation]:
    """The reservations of a file's text. What Proxmox VE takes for none is none."""
    return [
        Reservation(address, int(vmid), kind == "pid", int(value)) for address, vmid, kind, value in _LINE.findall(text)
    ]
