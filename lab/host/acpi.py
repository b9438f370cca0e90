"""The memory that a firmware's tables about the IOMMU (IVRS, DMAR) want mapped 1:1, as a kernel makes reserved regions of it."""

from __future__ import annotations

from typing import Any

from .devices import PciDevice


def named(machine: dict[str, Any], device: PciDevice) -> list[tuple[int, int]]:
    """The memory that this machine's firmware wants mapped 1:1 for a device, first and last address."""
    return [
        (one["start"], one["end"])
        for one in machine["hardware"]["firmware"].get("one_to_one", [])
        if one["first"] <= device.address <= one["last"]
    ]


def region_type(machine: dict[str, Any], cmdline: str, device: PciDevice) -> str:
    """`direct`, or `direct-relaxable` where the kernel doesn't hold to it (device_rmrr_is_relaxable; relax_rmrr of Proxmox VE's)."""
    if machine["hardware"]["cpu"]["vendor"] == "AuthenticAMD":
        return "direct"
    relaxed = any("relax_rmrr" in word for word in cmdline.split() if word.startswith("intel_iommu="))
    return "direct-relaxable" if relaxed or device.pci_class[:2] == "03" or device.pci_class == "0c03" else "direct"
