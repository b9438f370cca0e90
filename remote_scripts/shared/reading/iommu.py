"""The IOMMU: its tables in the firmware, its groups, what the kernel says of it."""

from __future__ import annotations

import base64
import re

from remote_scripts.shared.reading.answer import Group, Iommu
from remote_scripts.shared.reading.source import GROUPS, Source, head_and_tail

# How much of an ACPI table is passed on, in bytes; real ones have some hundred.
_TABLE_BYTES = 65536
_LINES = 40
_TABLES = "/sys/firmware/acpi/tables"
_GROUP = re.compile(r"0|[1-9][0-9]{0,8}")
_TYPE = re.compile(r"[A-Za-z-]{1,20}")
_DIRECT = re.compile(r"(0x[0-9a-f]{1,16}) (0x[0-9a-f]{1,16}) direct")
_SAID = re.compile(r"AMD-Vi|DMAR|iommu: Default domain|1:1 IOMMU mapping")


def iommu(source: Source) -> Iommu:
    """Reads all of it."""
    tables = [table for table in ("DMAR", "IVRS") if source.exists(f"{_TABLES}/{table}")]
    messages = [line for line in source.kernel_says if _SAID.search(line)]
    groups = source.groups()
    return Iommu(
        tables=tables,
        groups=len(groups),
        kernel_log=head_and_tail(messages, _LINES),
        of_group={int(name): group for name in groups if (group := _group(source, name))},
        acpi={table: text for table in tables if (text := _table(source, table)) is not None},
        interrupts=_interrupts(source),
    )


def _group(source: Source, name: str) -> Group | None:
    """None where the kernel doesn't tell what the firmware wants."""
    regions = source.needed(f"{GROUPS}/{name}/reserved_regions")
    if regions is None or not _GROUP.fullmatch(name):
        return None
    kind = source.word(f"{GROUPS}/{name}/type") or ""
    direct = [
        f"{int(match[1], 16):#x}-{int(match[2], 16):#x}"
        for match in map(_DIRECT.fullmatch, regions.split("\n"))
        if match
    ]
    return Group(kind if _TYPE.fullmatch(kind) else "", direct)


def _table(source: Source, name: str) -> str | None:
    content = source.needed_bytes(f"{_TABLES}/{name}", _TABLE_BYTES)
    return None if content is None else base64.b64encode(content).decode()


def _interrupts(source: Source) -> str:
    """By the names of their chips (arch/x86/kernel/apic/io_apic.c, ioapic_ir_chip). The kernel's log says it too, at
    its beginning, which a host that runs for long has no more.
    """
    text = source.text("/proc/interrupts")
    if "IR-IO-APIC" in text or "IR-PCI-MSI" in text:
        return "remapped"
    return "plain" if "IO-APIC" in text or "PCI-MSI" in text else ""
