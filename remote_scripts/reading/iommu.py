"""The IOMMU: its tables in the firmware, its groups, what the kernel says of it."""

from __future__ import annotations

import re

from remote_scripts.reading.answer import Iommu
from remote_scripts.reading.source import GROUPS, Source, head_and_tail

_LINES = 40
_TABLES = "/sys/firmware/acpi/tables"
_DIRECT = re.compile(r"(0x[0-9a-f]{1,16}) (0x[0-9a-f]{1,16}) direct")
_SAID = re.compile(r"AMD-Vi|DMAR|iommu: Default domain|1:1 IOMMU mapping")


def iommu(source: Source) -> Iommu:
    """Reads all of it."""
    tables = [table for table in ("DMAR", "IVRS") if source.files.exists(f"{_TABLES}/{table}")]
    messages = [line for line in source.kernel_says if _SAID.search(line)]
    groups = source.groups()
    return Iommu(
        tables=tables,
        groups=len(groups),
        kernel_log=head_and_tail(messages, _LINES),
        direct={int(name): regions for name in groups if (regions := _direct(source, name))},
        interrupts=_interrupts(source),
    )


def _direct(source: Source, name: str) -> list[str]:
    regions = (source.needed(f"{GROUPS}/{name}/reserved_regions") or "").split("\n")
    return [f"{int(match[1], 16):#x}-{int(match[2], 16):#x}" for match in map(_DIRECT.fullmatch, regions) if match]


def _interrupts(source: Source) -> str:
    """By the names of their chips (arch/x86/kernel/apic/io_apic.c, ioapic_ir_chip). The kernel's log says it too, at
    its beginning, which a host that runs for long has no more.
    """
    text = source.files.text("/proc/interrupts")
    if "IR-IO-APIC" in text or "IR-PCI-MSI" in text:
        return "remapped"
    return "plain" if "IO-APIC" in text or "PCI-MSI" in text else ""
