"""The firmware's tables about the IOMMU, read as the kernel reads them: IVRS (AMD) and DMAR (Intel).

Before an IOMMU is on, only these tables say for which devices the firmware wants memory mapped 1:1. Sources: AMD I/O
Virtualization Technology (IOMMU) Specification 48882, 5.2 (IVRS); Intel VT-d specification, 8 (DMAR);
drivers/iommu/amd/init.c and drivers/iommu/intel/{dmar,iommu}.c of Linux. A table may hold anything: reading ends at a
structure that isn't whole, and nothing is raised. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

# Both tables: the header that every ACPI table has, and 12 bytes of their own; then the structures.
_HEADER = 48
_LENGTH_AT = 4
# IVRS: what a memory definition (IVMD) is for: all devices, one, a range.
_IVMD_ALL, _IVMD_ONE, _IVMD_RANGE = 0x20, 0x21, 0x22
_IVMD_SIZE = 32
# IVRS: a unity mapping; an exclusion range, which Linux treats as one (drivers/iommu/amd/init.c, init_unity_map_range).
_IVMD_FLAGS = 0x01 | 0x08
# DMAR: a reserved memory region; its size without device scopes, and that of a scope without its path.
_RMRR, _RMRR_SIZE, _SCOPE_SIZE = 1, 24, 6
# DMAR: the scope's types that name PCI devices: an endpoint, and a bridge, which stands for all that is behind it.
_ENDPOINT, _BRIDGE = 1, 2
# DMAR, flags: the platform can remap interrupts.
_INTERRUPTS_AT, _INTERRUPTS = 37, 0x01


@dataclass(frozen=True)
class MemoryRange:
    """Memory that is to be mapped 1:1: the first and the last address, in bytes."""

    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.start:#x}-{self.end:#x}"


@dataclass(frozen=True)
class UnityMap:
    """An IVMD of IVRS. `first`, `last`: device ids as the IOMMU has them, bus << 8 | device << 3 | function."""

    segment: int
    first: int
    last: int
    memory: MemoryRange

    def names(self, address: str) -> bool:
        """Whether the map is for this PCI function (`dddd:bb:ss.f`)."""
        domain, bus, device, function = parts(address)
        return domain == self.segment and self.first <= (bus << 8 | device << 3 | function) <= self.last


@dataclass(frozen=True)
class DeviceScope:
    """One PCI device of an RMRR: the bus that its path begins at, then device and function of each bridge down to
    it."""

    bus: int
    path: tuple[tuple[int, int], ...]

    def names(self, chain: list[str]) -> bool:
        """Whether the scope is the last function of this chain of addresses, from the root bus down to it.

        The kernel compares the paths, device by device (dmar_match_pci_path), so that the numbers of the buses between,
        which change, don't matter; and takes a path of one device that fits none for an address itself, since some
        firmware has it so.
        """
        buses = [parts(address) for address in chain]
        if buses[0][1] == self.bus and tuple((device, function) for _, _, device, function in buses) == self.path:
            return True
        return len(self.path) == 1 and (buses[-1][1], buses[-1][2:]) == (self.bus, self.path[0])


@dataclass(frozen=True)
class ReservedMemory:
    """An RMRR of DMAR."""

    segment: int
    memory: MemoryRange
    scopes: tuple[DeviceScope, ...]

    def names(self, chain: list[str]) -> bool:
        """Whether the memory is for the last function of a chain of addresses, from the root bus down to it: by its own
        scope, or by that of a bridge above it."""
        if parts(chain[-1])[0] != self.segment:
            return False
        prefixes = [chain[:length] for length in range(1, len(chain) + 1)]
        return any(scope.names(prefix) for scope in self.scopes for prefix in prefixes)


def parts(address: str) -> tuple[int, int, int, int]:
    """Domain, bus, device and function of `dddd:bb:ss.f`."""
    domain, bus, rest = address.split(":")
    device, function = rest.split(".")
    return int(domain, 16), int(bus, 16), int(device, 16), int(function, 16)


def unity_maps(ivrs: bytes) -> list[UnityMap]:
    """The memory that an IVRS table wants mapped 1:1."""
    maps = []
    for start, size in _structures(ivrs, "<BxH"):
        kind, flags = ivrs[start], ivrs[start + 1]
        if kind not in (_IVMD_ALL, _IVMD_ONE, _IVMD_RANGE) or not flags & _IVMD_FLAGS or size < _IVMD_SIZE:
            continue
        device, last, segment, memory, length = struct.unpack_from("<HHH6xQQ", ivrs, start + 4)
        first, last = {_IVMD_ALL: (0, 0xFFFF), _IVMD_ONE: (device, device), _IVMD_RANGE: (device, last)}[kind]
        maps.append(UnityMap(segment, first, last, MemoryRange(memory, memory + max(length, 1) - 1)))
    return maps


def reserved_memory(dmar: bytes) -> list[ReservedMemory]:
    """The memory that a DMAR table wants mapped 1:1."""
    regions = []
    for start, size in _structures(dmar, "<HH"):
        if struct.unpack_from("<H", dmar, start)[0] != _RMRR or size < _RMRR_SIZE:
            continue
        segment, memory, end = struct.unpack_from("<2xHQQ", dmar, start + 4)
        regions.append(
            ReservedMemory(segment, MemoryRange(memory, end), tuple(_scopes(dmar, start + _RMRR_SIZE, start + size)))
        )
    return regions


def remaps_interrupts(dmar: bytes) -> bool | None:
    """Whether the firmware says that interrupts can be remapped (INTR_REMAP); None: this is no whole DMAR table."""
    if len(dmar) < _HEADER or not dmar.startswith(b"DMAR"):
        return None
    return bool(dmar[_INTERRUPTS_AT] & _INTERRUPTS)


def _structures(table: bytes, header_format: str) -> Iterator[tuple[int, int]]:
    """The offset and the size of each structure of a table, in bytes. Whole ones only.

    :param header_format: of the type and the size at a structure's beginning, as `struct` has it.
    """
    if len(table) < _HEADER:
        return
    end = min(len(table), struct.unpack_from("<I", table, _LENGTH_AT)[0])
    offset, header_size = _HEADER, struct.calcsize(header_format)
    while offset + header_size <= end:
        size = struct.unpack_from(header_format, table, offset)[-1]
        if size < header_size or offset + size > end:
            return
        yield offset, size
        offset += size


def _scopes(table: bytes, offset: int, end: int) -> Iterator[DeviceScope]:
    while offset + _SCOPE_SIZE <= end:
        kind, size = table[offset], table[offset + 1]
        if size < _SCOPE_SIZE or offset + size > end:
            return
        path = table[offset + _SCOPE_SIZE : offset + size]
        if kind in (_ENDPOINT, _BRIDGE):
            pairs = list(pairwise(path))[::2]
            yield DeviceScope(table[offset + 5], tuple((device, function) for device, function in pairs))
        offset += size
