"""A PCI card for the doctor of VMs and hosts: functions, drivers, IOMMU group, mapping and users. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from homelab.cards.entry import entry_of
from homelab.doctor.reading import Reading
from homelab.doctor.report import Table
from homelab.facts.devices import Device
from homelab.findings import Finding, Stage
from remote_scripts.pve.properties import overlap
from remote_scripts.pve.properties import parse as parse_properties

COLUMNS = ["card", "function", "id", "driver", "group", "also in the group", "mapping", "held by"]


def group_names(reading: Reading, slot: str) -> str:
    """What else is in the card's group; bridges, of which VFIO asks nothing, are left out."""
    return "; ".join(map(reading.facts.describe, reading.facts.others_in_group(slot))) or "nothing"


def mappings_of(reading: Reading, slot: str) -> list[str]:
    """Ids of the PCI mappings of this node that have the card."""
    return [
        name
        for name, entries in reading.facts.guests.mapping_entries.items()
        for entry in entries
        if entry.get("node") == reading.node and overlap(entry.get("path", ""), reading.facts.path_of(slot))
    ]  # fmt: skip


def holders(reading: Reading, slot: str) -> list[str]:
    """Who has the card: VMs by configuration or reservation, containers by configuration."""
    users = reading.facts.users_of(slot)
    guests = [f"{user}{', running' if user.running else ''}" for user in users]
    return guests + [f"container {config.id}" for config in reading.facts.containers_with(slot)]


def table(reading: Reading, slots: list[str]) -> Table:
    """Every function of these cards."""
    rows = [_row(reading, device, slot) for slot in slots for device in reading.facts.functions(slot)]
    return Table("cards", COLUMNS, rows)


def _row(reading: Reading, device: Device, slot: str) -> list[str]:
    first = device == reading.facts.functions(slot)[0]
    of_slot = [group_names(reading, slot), ", ".join(mappings_of(reading, slot)) or "none"]
    of_slot.append("; ".join(holders(reading, slot)) or "nobody")
    group = "none" if device.group is None else str(device.group)
    name = reading.facts.model(reading.facts.functions(slot)[0]) if first else ""
    return [name, device.address, device.id, device.driver or "none", group, *(of_slot if first else ["", "", ""])]


def data(reading: Reading, slot: str) -> dict[str, Any]:
    """For the report's JSON."""
    functions = reading.facts.functions(slot)
    return {
        "slot": slot,
        "model": reading.facts.model(functions[0]) if functions else "",
        "functions": [
            {
                "address": function.address,
                "id": function.id,
                "subsystem": function.subsystem,
                "class": function.class_code,
                "driver": function.driver or None,
                "group": function.group,
            }
            for function in functions
        ],
        "groupMembers": [device.address for device in reading.facts.group_of(slot) if device not in functions],
        "mappings": mappings_of(reading, slot),
        "vms": [{"id": user.vmid, "name": user.name, "running": user.running} for user in reading.facts.users_of(slot)],
        "containers": [config.id for config in reading.facts.containers_with(slot)],
    }


def mapping_findings(reading: Reading, name: str) -> Iterator[Finding]:
    """How the entry of an owner's mapping for this node differs from the hardware, as Proxmox VE compares them at each
    start of a VM (PVE::Mapping::PCI, assert_valid)."""
    of_all = reading.facts.guests.mapping_entries.get(name, [])
    entries = [entry for entry in of_all if entry.get("node") == reading.node]
    differences = [difference for entry in entries for difference in _differences(reading, entry)]
    if not differences:
        return
    yield Finding(
        f"the PCI mapping {name} to be what is in the slot",
        "; ".join(differences),
        "Proxmox VE compares them at each start and refuses a VM whose card has changed",
        f"correct {name} under Datacenter -> Resource Mappings",
        Stage.CONFIGURATION,
    )


def _differences(reading: Reading, entry: dict[str, str]) -> list[str]:
    differences = []
    for number, part in enumerate(path for path in entry.get("path", "").split(";") if path):
        address = part if "." in part else f"{part}.0"
        device = reading.facts.by_address.get(address.lower())
        if device is None:
            differences.append(f"there is no {address} on the host")
            continue
        hardware = entry_of(address, device.id, device.subsystem, device.group)
        for key in ("id", "subsystem-id", "iommugroup") if number == 0 else ("id", "subsystem-id"):
            # A function without a subsystem: sysfs has no such file, and Proxmox VE nothing to compare.
            if (value := hardware[key]) and (entry.get(key) or "").lower() != value:
                differences.append(f"{key} of {address}: {value}, the mapping says {entry.get(key, 'nothing')}")
    return differences


def slots_of(reading: Reading, key: str, value: str) -> list[str]:
    """Where the cards are that a hostpci option gets: their slots; of anything else in a card's slot, the function."""
    places = reading.facts.places_of(parse_properties(key, value))
    return list(dict.fromkeys(reading.facts.place_of(place) for place in places))
