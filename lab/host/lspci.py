"""lspci(8) of a lab host: output as pciutils 3.9/3.13 prints it, from sysfs and the device list."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

from .catalogue import PROG_IF, SUBSYSTEM_VENDORS, VENDORS, normal
from .devices import PciDevice, load_devices
from .program import Failure, Options, UsageError
from .state import HostState


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """lspci."""
    options = Options(arguments, "nkDvqs:d:", ())
    if options.rest:
        raise UsageError(f"unknown argument {options.rest[0]!r}; options: -n -nn -k -D -v -vv -s SLOT -d ID")
    listing = _Listing(host, options)
    listing.print()
    return 0


class _Listing:
    def __init__(self, host: HostState, options: Options) -> None:
        letters = [given for given, _ in options.given]
        self.host = host
        self.numeric = letters.count("n")
        self.verbose = letters.count("v")
        self.kernel = "k" in options
        self.slot = _slot_filter(options.value("s"))
        self.ids = _id_filter(options.value("d"))
        self._bus = f"{host.root}/sys/bus/pci/devices"
        self.devices = [d for d in load_devices(host.machine) if os.path.exists(f"{self._bus}/{d.address}")]  # noqa: PTH110
        self.domain = "D" in options or any(not d.address.startswith("0000:") for d in self.devices)

    def print(self) -> None:
        """Every chosen device."""
        for device in self.devices:
            if self.slot.match(device.address) and self.ids.match(f"{device.ids}:{device.pci_class}"):
                self._print(device)

    def _slot_name(self, device: PciDevice) -> str:
        return device.address if self.domain else device.address.removeprefix("0000:")

    def _print(self, device: PciDevice) -> None:
        revision = f" (rev {device.revision})" if device.revision != "00" else ""
        print(
            f"{self._slot_name(device)} {self._class(device)}: {self._label(device)}{revision}{self._prog_if(device)}"
        )
        if (self.kernel or self.verbose) and device.subsystem:
            print(f"\tSubsystem: {self._subsystem(device)}")
        if self.verbose:
            self._details(device)
        if self.kernel or self.verbose:
            driver = self._driver(device)
            if driver:
                print(f"\tKernel driver in use: {driver}")
            modules = self._modules(device)
            if modules:
                print(f"\tKernel modules: {', '.join(modules)}")
        if self.verbose:
            print()

    def _class(self, device: PciDevice) -> str:
        if self.numeric == 1:
            return device.pci_class
        return f"{device.class_name} [{device.pci_class}]" if self.numeric else device.class_name

    def _label(self, device: PciDevice) -> str:
        if self.numeric == 1:
            return device.ids
        if self.numeric:
            return f"{device.label} [{device.ids}]"
        return device.label if device.name else f"{device.label} {device.device}"

    def _prog_if(self, device: PciDevice) -> str:
        known = PROG_IF.get(device.pci_class)
        if not self.verbose or known is None:
            return ""
        text = f" [{known[1]}]" if known[0] == device.prog_if else ""
        return f" (prog-if {device.prog_if}{text})"

    def _subsystem(self, device: PciDevice) -> str:
        ids = device.subsystem or ""
        vendor, _, number = ids.partition(":")
        if self.numeric == 1:
            return ids
        name = SUBSYSTEM_VENDORS.get(vendor) or VENDORS.get(vendor) or "Unknown vendor"
        return f"{name} Device [{ids}]" if self.numeric else f"{name} Device {number}"

    def _details(self, device: PciDevice) -> None:
        flags = "bus master, fast devsel, latency 0" if self._driver(device) else "fast devsel"
        group = self._group(device)
        print(f"\tFlags: {flags}, IRQ 16" + (f", IOMMU group {group}" if group else ""))
        for line in self._resources(device):
            print(f"\t{line}")
        if device.pci_class == "0604":
            print(f"\tCapabilities: [40] Express (v2) {self._port(device)}, IntMsgNum 0")
        elif device.pci_class != "0600":
            print("\tCapabilities: [60] Power Management version 3")
            kind = "Endpoint" if device.parent else "Root Complex Integrated Endpoint"
            print(f"\tCapabilities: [78] Express (v2) {kind}, IntMsgNum 0")
        if device.acs:
            print("\tCapabilities: [2a0] Access Control Services")
            if self.verbose > 1:
                print("\t\tACSCap:\tSrcValid+ TransBlk+ ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- DirectTrans+")
                print("\t\tACSCtl:\tSrcValid+ TransBlk- ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- DirectTrans-")

    def _port(self, device: PciDevice) -> str:
        """Below a root port, or another switch's downstream port, is a switch's upstream port; below that its downstream ports."""
        parents, above = {one.address: one.parent for one in self.devices}, 0
        parent = device.parent
        while parent:
            above, parent = above + 1, parents.get(parent)
        return "Root Port (Slot+)" if not above else "Upstream Port" if above % 2 else "Downstream Port (Slot+)"

    def _resources(self, device: PciDevice) -> list[str]:
        text = Path(self._bus, device.address, "resource").read_text(encoding="utf-8")
        lines = []
        for line, size in zip(text.splitlines(), device.bars, strict=False):
            start = int(line.split()[0], 16)
            lines.append(f"Memory at {start:x} (64-bit, prefetchable) [size={size}]")
        return lines

    def _link(self, device: PciDevice, name: str) -> str | None:
        # As text: a listing asks for three links of each of twenty devices.
        try:
            return os.readlink(f"{self._bus}/{device.address}/{name}").rpartition("/")[2]  # noqa: PTH115
        except OSError:
            return None

    def _driver(self, device: PciDevice) -> str | None:
        return self._link(device, "driver")

    def _group(self, device: PciDevice) -> str | None:
        return self._link(device, "iommu_group")

    def _modules(self, device: PciDevice) -> list[str]:
        if device.built_in:
            return []
        return [m for m in device.candidates(nvidia_installed=True) if m in self._of_kernel]

    @functools.cached_property
    def _of_kernel(self) -> set[str]:
        """The modules that the running kernel has."""
        kernel = self.host.read("/proc/sys/kernel/osrelease", "").strip()
        dep = self.host.read(f"/usr/lib/modules/{kernel}/modules.dep", "")
        return {normal(m) for m in re.findall(r"([\w-]+)\.ko\S*:", dep)}


def _slot_filter(text: str | None) -> re.Pattern[str]:
    """A pattern of addresses for `[DOMAIN:]BUS:[SLOT[.FUNCTION]]`."""
    if text is None:
        return re.compile(".*")
    match = re.fullmatch(r"(?:0000:)?([0-9a-f]{2}:(?:[0-9a-f]{2}(?:\.[0-7])?)?)", text)
    if match is None:
        raise Failure("lspci: -s: Invalid slot number")
    return re.compile(f"0000:{match[1]}")


def _id_filter(text: str | None) -> re.Pattern[str]:
    """A pattern of `vendor:device:class` for `[vendor]:[device][:class]`."""
    if text is None:
        return re.compile(".*")
    parts = text.split(":")
    if len(parts) < 2 or len(parts) > 4:
        raise Failure("lspci: -d: ':' expected")
    wanted = [part.removeprefix("0x").lower().zfill(4) if part else "...." for part in parts[:3]]
    return re.compile(":".join(wanted + ["...."] * (3 - len(wanted))) + "$")
