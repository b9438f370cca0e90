"""IOMMU groups as the kernel draws them from the topology and Access Control Services; `pcie_acs_override=`, which
changes that.

The rule is drivers/iommu/iommu.c, pci_device_group, with drivers/pci/pci.c, pci_acs_enabled. The override is Proxmox
VE's own patch ("pci: Enable overrides for missing ACS capabilities", pve-kernel patch 0004): only its kernels know the
word. Pure.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from homelab.host.devices import Device

WORD = "pcie_acs_override"
# Of the patch's 16 places for ids the last one is never used.
MOST_IDS = 15
_ID = re.compile(r"id:([0-9a-fA-F]{4}:[0-9a-fA-F]{4})")
# What lspci calls the kinds of PCIe devices, in lower case.
_PORTS = ("root port", "downstream port")
_MAY_BE_ONE_OF_SEVERAL = ("endpoint", "legacy endpoint", "root complex integrated endpoint", "upstream port")


@dataclass(frozen=True)
class Override:
    """What is taken for isolating although it says nothing of Access Control Services."""

    downstream: bool = False
    multifunction: bool = False
    ids: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return self.downstream or self.multifunction or bool(self.ids)

    def __str__(self) -> str:
        named = [name for name in ("downstream", "multifunction") if getattr(self, name)]
        return ",".join([*named, *(f"id:{one}" for one in sorted(self.ids))])

    def __sub__(self, other: Override) -> Override:
        return Override(
            self.downstream and not other.downstream,
            self.multifunction and not other.multifunction,
            self.ids - other.ids,
        )


def knows_override(kernel: str) -> bool:
    """Does a kernel of this release (`uname -r`) have the patch? Proxmox VE's have."""
    return "-pve" in kernel


def override(cmdline: str, kernel: str) -> Override:
    """What a kernel makes of its command line. Several such words add up."""
    if not knows_override(kernel):
        return Override()
    listed = [
        part
        for word in cmdline.split()
        if word.startswith(f"{WORD}=")
        for part in word.partition("=")[2].strip('"').split(",")
    ]
    ids = [match[1].lower() for part in listed if (match := _ID.match(part))]
    return Override(
        any(part.startswith("downstream") for part in listed),
        any(part.startswith("multifunction") for part in listed),
        frozenset(ids[:MOST_IDS]),
    )


def grouped(devices: Sequence[Device], taken_for: Override) -> Mapping[str, str]:
    """Address -> a name of its group, the same for all in it: what can't be isolated from each other.

    Going up from a device, everything under a bridge that doesn't isolate shares the group with what is under it, and
    so do the functions of that bridge's slot. Quirks of chipsets that isolate nevertheless are not known here: a group
    may hold too much.
    """
    by_address = {device.address: device for device in devices}
    in_slot = Counter(device.slot for device in devices if not device.physfn)

    def isolates(device: Device) -> bool:
        if device.acs:
            return True
        kind = device.express
        if not kind:  # conventional PCI, or not known
            return False
        if device.id in taken_for.ids:
            return True
        if kind in _PORTS:
            return taken_for.downstream
        alone = in_slot[device.slot] < 2
        return kind in _MAY_BE_ONE_OF_SEVERAL and (alone or taken_for.multifunction)

    isolating = {address: isolates(device) for address, device in by_address.items()}
    names = {}
    for address, device in by_address.items():
        above = [one for one in device.ancestors if one in by_address]
        # The whole way up has to isolate: a bridge that does is of no use below one that doesn't.
        shared = [number for number, bridge in enumerate(above) if not isolating[bridge]]
        top = by_address[above[shared[-1]]] if shared else device
        names[address] = top.address if isolating[top.address] or in_slot[top.slot] < 2 else top.slot
    return names
