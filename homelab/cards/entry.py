"""A node's entry of a PCI mapping, as Proxmox VE writes it (PVE::Mapping::PCI). Pure; a program's start imports it."""

from __future__ import annotations

from collections.abc import Mapping


def entry_of(path: str, device: str, subsystem: str, group: int | None) -> dict[str, str]:
    """What Proxmox VE compares with the hardware at a VM's start.

    :param path: a slot or a function, which is the card's graphics.
    :param device: vendor:device of the path's first function.
    :param subsystem: the same of its subsystem. 0000:0000, too, is compared; only a function without these files in
        sysfs has none.
    :param group: its IOMMU group.
    """
    return {
        "path": path,
        "id": device,
        "iommugroup": "-1" if group is None else str(group),
        "subsystem-id": "" if subsystem in ("", "0:0") else subsystem,
    }


def as_text(node: str, entry: Mapping[str, str]) -> str:
    """An entry as Proxmox VE writes it: properties in the order of their names."""
    whole = {"node": node, **entry}
    return ",".join(f"{key}={whole[key]}" for key in sorted(whole) if whole[key] not in (None, ""))
