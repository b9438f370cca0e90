"""A function on the PCI bus, as the kernel shows it."""

from __future__ import annotations

from remote_scripts.tools.system import System

BUS = "/sys/bus/pci"
DEVICES = f"{BUS}/devices"


def driver_of(system: System, address: str) -> str:
    """The driver of a function; empty: it has none."""
    try:
        return system.files.target(f"{DEVICES}/{address}/driver").rpartition("/")[2]
    except FileNotFoundError:  # it has let go this moment
        return ""


def ids_of(system: System, address: str) -> str:
    """Its ids, VENDOR:DEVICE; what can't be read is empty."""
    parts = (system.files.line(f"{DEVICES}/{address}/{name}").removeprefix("0x") for name in ("vendor", "device"))
    return ":".join(parts)
