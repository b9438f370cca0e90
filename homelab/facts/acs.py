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

from homelab.facts.devices import Device

WORD = "pcie_acs_override"
_ID = re.compile(r"id:([0-9a-fA-F]{4}:[0-9a-fA-F]{4})")
# Kinds of PCIe devices, as lspci names them, in lower case.
_PORTS = ("root port", "downstream port")
_MAY_BE_ONE_OF_SEVERAL = ("endpoint", "legacy endpoint", "root complex integrated endpoint", "upstream port")


@dataclass(frozen=True)
class Override:
    """The functions that the kernel is told to take for isolating (`pcie_acs_override=`), although they say nothing of
    Access Control Services: downstream ports, functions of a multifunction slot, `vendor:device` ids."""

    downstream: bool = False
    multifunction: bool = False
    ids: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return self.downstream or self.multifunction or bool(self.ids)

    def __str__(self) -> str:
        kinds = [name for name in ("downstream", "multifunction") if getattr(self, name)]
        return ",".join([*kinds, *(f"id:{id_}" for id_ in sorted(self.ids))])

    def __sub__(self, other: Override) -> Override:
        return Override(
            self.downstream and not other.downstream,
            self.multifunction and not other.multifunction,
            self.ids - other.ids,
        )


def knows_override(kernel: str) -> bool:
    """Whether a kernel of this release (`uname -r`) has the patch. Proxmox VE's have it."""
    return "-pve" in kernel


def override(cmdline: str, kernel: str) -> Override:
    """The override of a kernel with this command line. Several `pcie_acs_override=` words add up."""
    if not knows_override(kernel):
        return Override()
    options = [
        part
        for word in cmdline.split()
        if word.startswith(f"{WORD}=")
        for part in word.partition("=")[2].strip('"').split(",")
    ]
    return Override(
        any(part.startswith("downstream") for part in options),
        any(part.startswith("multifunction") for part in options),
        frozenset(match[1].lower() for part in options if (match := _ID.match(part))),
    )


def grouped(devices: Sequence[Device], assumed: Override) -> Mapping[str, str]:
    """Address -> a name of its group, the same for all functions that can't be isolated from each other.

    Everything under a bridge that doesn't isolate is one group, together with the functions of that bridge's slot.
    Chipsets that isolate by a quirk of the kernel's are not known here: a group may hold too much.

    :param assumed: taken for isolating.
    """
    by_address = {device.address: device for device in devices}
    in_slot = Counter(device.slot for device in devices if not device.physfn)

    def isolates(device: Device) -> bool:
        if device.acs:
            return True
        kind = device.express
        if not kind:  # conventional PCI, or not known
            return False
        if device.id in assumed.ids:
            return True
        if kind in _PORTS:
            return assumed.downstream
        alone = in_slot[device.slot] < 2
        return kind in _MAY_BE_ONE_OF_SEVERAL and (alone or assumed.multifunction)

    isolating = {address: isolates(device) for address, device in by_address.items()}
    group_names = {}
    for address, device in by_address.items():
        bridges = [bridge for bridge in device.ancestors if bridge in by_address]
        # The whole way up has to isolate: a bridge that does is of no use below one that doesn't.
        passing = [number for number, bridge in enumerate(bridges) if not isolating[bridge]]
        top = by_address[bridges[passing[-1]]] if passing else device
        group_names[address] = top.address if isolating[top.address] or in_slot[top.slot] < 2 else top.slot
    return group_names
