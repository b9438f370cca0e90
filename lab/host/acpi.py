"""The firmware's tables about the IOMMU: IVRS and DMAR, as far as a kernel makes reserved regions of them.

Layouts: AMD I/O Virtualization Technology Specification 48882, 5.2; Intel VT-d specification, 8.
"""

from __future__ import annotations

import struct
from typing import Any

from .devices import PciDevice


def address_parts(address: str) -> tuple[int, int, int, int]:
    """Domain, bus, device, function."""
    domain, bus, rest = address.split(":")
    device, function = rest.split(".")
    return int(domain, 16), int(bus, 16), int(device, 16), int(function, 16)


def device_id(address: str) -> int:
    """Bus, device and function in 16 bits."""
    _, bus, device, function = address_parts(address)
    return bus << 8 | device << 3 | function


def table(signature: bytes, own: bytes, structures: bytes) -> bytes:
    """A table whose checksum is right: header, 12 bytes of its own, structures."""
    length = 48 + len(structures)
    whole = struct.pack("<4sIBB6s8sI4sI", signature, length, 2, 0, b"LAB   ", b"HOMELAB ", 1, b"LAB ", 1)
    whole += own.ljust(12, b"\0") + structures
    return whole[:9] + bytes([-sum(whole) & 0xFF]) + whole[10:]


def ivrs(ranges: list[tuple[str, str, int, int]]) -> bytes:
    """IVRS with an IVHD, and for each range an IVMD of the type 0x22 (unity map, read and write)."""
    hardware = struct.pack("<BBHHHQHHI", 0x10, 0, 28, 0x0002, 0x40, 0xFEB80000, 0, 0, 0) + struct.pack(
        "<BHB", 0x01, 0, 0
    )
    memory = b"".join(
        struct.pack("<BBHHHH6xQQ", 0x22, 0x07, 32, device_id(first), device_id(last), 0, start, end - start + 1)
        for first, last, start, end in ranges
    )
    return table(b"IVRS", struct.pack("<I", 0x00203043), hardware + memory)


def dmar(regions: list[tuple[list[list[str]], int, int]], *, remaps_interrupts: bool = True) -> bytes:
    """DMAR with a DRHD, and for each region an RMRR; a region's devices as chains of addresses from the root bus down."""
    hardware = struct.pack("<HHBBHQ", 0, 16, 1, 0, 0, 0xFED91000)
    memory = b""
    for chains, start, end in regions:
        scopes = b"".join(_scope(chain) for chain in chains)
        memory += struct.pack("<HHHHQQ", 1, 24 + len(scopes), 0, 0, start, end) + scopes
    return table(b"DMAR", bytes([38, int(remaps_interrupts)]), hardware + memory)


def _scope(chain: list[str]) -> bytes:
    path = b"".join(bytes(address_parts(address)[2:]) for address in chain)
    return struct.pack("<BBHBB", 1, 6 + len(path), 0, 0, address_parts(chain[0])[1]) + path


def named(machine: dict[str, Any], device: PciDevice) -> list[tuple[int, int]]:
    """The memory that this machine's firmware wants mapped 1:1 for a device, first and last address."""
    return [
        (one["start"], one["end"])
        for one in machine["hardware"]["firmware"].get("one_to_one", [])
        if one["first"] <= device.address <= one["last"]
    ]


def of_machine(machine: dict[str, Any], devices: list[PciDevice]) -> tuple[str, bytes]:
    """The name and the bytes of a machine's table."""
    firmware = machine["hardware"]["firmware"]
    wanted = firmware.get("one_to_one", [])
    if machine["hardware"]["cpu"]["vendor"] == "AuthenticAMD":
        return "IVRS", ivrs([(one["first"], one["last"], one["start"], one["end"]) for one in wanted])
    parents = {device.address: device.parent for device in devices}

    def chain(address: str) -> list[str]:
        parent = parents.get(address)
        return [*(chain(parent) if parent else []), address]

    regions = [
        ([chain(d.address) for d in devices if one["first"] <= d.address <= one["last"]], one["start"], one["end"])
        for one in wanted
    ]
    return "DMAR", dmar(regions, remaps_interrupts=firmware.get("remaps_interrupts", True))


def region_type(machine: dict[str, Any], cmdline: str, device: PciDevice) -> str:
    """`direct`, or `direct-relaxable` where the kernel doesn't hold to it (device_rmrr_is_relaxable; relax_rmrr of Proxmox VE's)."""
    if machine["hardware"]["cpu"]["vendor"] == "AuthenticAMD":
        return "direct"
    relaxed = any("relax_rmrr" in word for word in cmdline.split() if word.startswith("intel_iommu="))
    return "direct-relaxable" if relaxed or device.pci_class[:2] == "03" or device.pci_class == "0c03" else "direct"
