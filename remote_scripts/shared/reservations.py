"""qemu-server's reservations: which VM runs with a PCI function, or starts with it (PVE::QemuServer::PCI)."""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from dataclasses import dataclass

from remote_scripts.tools.system import System

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

    def lives(self, system: System) -> bool:
        """Whether the VM still runs, or may still start. One that was killed leaves its reservation behind."""
        return system.files.exists(f"/proc/{self.value}") if self.runs else self.value > time.time()


def parse(text: str) -> list[Reservation]:
    """The reservations of a file's text. What Proxmox VE takes for none is none."""
    return [
        Reservation(address, int(vmid), kind == "pid", int(value)) for address, vmid, kind, value in _LINE.findall(text)
    ]


def holders(system: System, functions: Collection[str]) -> list[str]:
    """The ids of the VMs that run with one of these functions, or start with it.

    :raises OSError: the file can't be read.
    """
    content = system.files.need(FILE) or b""
    reservations = parse(content.decode("utf-8", "replace"))
    living = (known for known in reservations if known.address in functions and known.lives(system))
    return [str(vmid) for vmid in dict.fromkeys(known.vmid for known in living)]
