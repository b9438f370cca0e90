"""A scenario out of what people post of a real machine: its IOMMU groups, with or without `lspci` text.

Group listings are understood in the forms of the usual shell loops (`IOMMU Group 0 00:01.0 Host bridge ...`, also in
lower case; `IOMMU Group 51:` with indented devices below), as `find /sys/kernel/iommu_groups` prints paths, and as
dmesg says `Adding to iommu group N`. lspci text may be `-nn`, `-nnk`, `-k`, `-n`, `-vn`. Everything else in the
text is passed over: posts have comments, prompts and markup in them.

What no listing says is filled in so that the machine can exist: which bridge leads to which bus (by the order in
which Linux numbers buses), a disk to boot from on the first storage controller, vmbr0 on the first network card;
a controller or card that isn't in the listing is added on buses fd and fe, each in a group of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from lab.host.catalogue import CLASSES, NVIDIA_HOST_MODULES, VENDORS, normal
from lab.scenario import Scenario, scenario_from

_ADDRESS = r"(?:[0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"
_GROUP = re.compile(r"\bgroup:?\s+(\d+)\b:?(.*)$", re.I)
_PATH = re.compile(rf"iommu_groups/(\d+)/devices/({_ADDRESS})")
_DMESG = re.compile(rf"pci ({_ADDRESS}): Adding to iommu group (\d+)")
_DEVICE = re.compile(rf"(?<![\w/])({_ADDRESS})(?![\w.])\s+(.*)$")
_NAMED = re.compile(r"(.*?) \[([0-9a-f]{4})\]: (.*) \[([0-9a-f]{4}):([0-9a-f]{4})\](.*)$")
_NUMERIC = re.compile(r"([0-9a-f]{4}): ([0-9a-f]{4}):([0-9a-f]{4})(.*)$")
_PROG_IF = re.compile(r"\(prog-if ([0-9a-f]{2})")
_REVISION = re.compile(r"\(rev ([0-9a-f]{2})\)")
_STORAGE = ("0108", "0106", "0104", "0107", "0100", "0101")
#: A function of which nothing but its address is known.
_UNKNOWN = {"vendor": "ffff", "device": "ffff", "class": "0880"}


class ListingError(ValueError):
    """The text holds no IOMMU group that can be understood."""


@dataclass
class Listed:
    """What the texts say of one function; None where they say nothing."""

    address: str
    group: int | None = None
    vendor: str | None = None
    device: str | None = None
    pci_class: str | None = None
    prog_if: str | None = None
    revision: str | None = None
    label: str | None = None
    subsystem: str | None = None
    driver_in_use: str | None = None
    modules: list[str] | None = None
    parent: str | None = field(default=None, repr=False)

    @property
    def bus(self) -> str:
        """`0000:01` of `0000:01:00.0`."""
        return self.address[:7]


def parse_groups(text: str) -> dict[str, Listed]:
    """Functions by full address, from a listing of IOMMU groups.

    Raises:
        ListingError: there is no group with a device in the text.
    """
    found: dict[str, Listed] = {}
    current: int | None = None
    for raw in text.splitlines():
        line = _plain(raw)
        path, dmesg = _PATH.search(line), _DMESG.search(line)
        if path or dmesg:
            group, address = (path[1], path[2]) if path else (dmesg[2], dmesg[1]) if dmesg else ("", "")
            found[_full(address)] = Listed(_full(address), int(group))
            continue
        header = _GROUP.search(line)
        rest = line
        if header:
            current, rest = int(header[1]), header[2]
        device = _DEVICE.search(rest)
        if device and current is not None and _describes(device[2]):
            listed = _from_line(device[1], device[2])
            listed.group = current
            found[listed.address] = listed
    if not found:
        raise ListingError(
            "no IOMMU group found in the text: expected lines such as `IOMMU Group 0 00:01.0 Host bridge [0600]: ...`,"
            " `IOMMU Group 0:` followed by devices, or paths below /sys/kernel/iommu_groups"
        )
    return found


def parse_lspci(text: str) -> dict[str, Listed]:
    """Functions by full address, from lspci's output; lines that a filter such as grep cut off are missing."""
    found: dict[str, Listed] = {}
    current: Listed | None = None
    for raw in text.splitlines():
        if raw[:1] in (" ", "\t") and current is not None:
            _detail(current, raw.strip())
            continue
        device = _DEVICE.search(_plain(raw))
        current = _from_line(device[1], device[2]) if device else current
        if current is not None and device:
            found[current.address] = current
    return found


def _plain(line: str) -> str:
    """A line without terminal colours and markup."""
    return re.sub(r"\x1b\[[0-9;]*m|\*\*|`", "", line).rstrip()


def _full(address: str) -> str:
    return address.lower() if address.count(":") == 2 else f"0000:{address.lower()}"


def _describes(text: str) -> bool:
    return bool(_NAMED.match(text) or _NUMERIC.match(text) or text.split(":")[0].strip() in CLASSES.values())


def _from_line(address: str, text: str) -> Listed:
    listed = Listed(_full(address))
    text = re.sub(r"^\[[A-Z]+\]\s*", "", text)  # some scripts mark devices that can be reset
    named, numeric = _NAMED.match(text), _NUMERIC.match(text)
    rest = text
    if named:
        listed.pci_class, listed.label, listed.vendor, listed.device, rest = named.group(2, 3, 4, 5, 6)
    elif numeric:
        listed.pci_class, listed.vendor, listed.device, rest = numeric.group(1, 2, 3, 4)
    revision, prog_if = _REVISION.search(rest), _PROG_IF.search(rest)
    listed.revision = revision[1] if revision else None
    listed.prog_if = prog_if[1] if prog_if else None
    return listed


def _detail(listed: Listed, line: str) -> None:
    key, _, value = line.partition(": ")
    if key == "Subsystem":
        ids = re.findall(r"\b([0-9a-f]{4}:[0-9a-f]{4})\b", value)
        listed.subsystem = ids[-1] if ids else listed.subsystem
    elif key == "Kernel driver in use":
        listed.driver_in_use = value.strip()
    elif key == "Kernel modules":
        listed.modules = [normal(m.strip()) for m in value.split(",")]


def merge(groups: dict[str, Listed], details: dict[str, Listed]) -> dict[str, Listed]:
    """Groups, with what lspci's text adds about the same addresses."""
    for address, extra in details.items():
        listed = groups.get(address)
        if listed is None:
            continue  # of a device outside every group, or of another machine
        for name in (
            "vendor",
            "device",
            "pci_class",
            "prog_if",
            "revision",
            "label",
            "subsystem",
            "driver_in_use",
            "modules",
        ):
            if getattr(extra, name) is not None:
                setattr(listed, name, getattr(extra, name))
    return groups


def find_parents(devices: dict[str, Listed]) -> None:
    """Set each function's bridge: Linux numbers buses depth first, one number for each bridge it meets."""
    buses = {d.bus for d in devices.values()}
    next_bus = 0

    def scan(bus: str) -> None:
        nonlocal next_bus
        for bridge in sorted(
            (d for d in devices.values() if d.bus == bus and d.pci_class == "0604"), key=lambda d: d.address
        ):
            next_bus += 1
            behind = f"0000:{next_bus:02x}"
            if next_bus > 0xFC:
                return
            if behind in buses:
                for device in devices.values():
                    if device.bus == behind:
                        device.parent = bridge.address
                scan(behind)

    scan("0000:00")


def scenario_from_listing(
    groups: str,
    lspci: str = "",
    *,
    name: str = "listing",
    title: str = "a machine from its IOMMU group listing",
    cpu_vendor: str | None = None,
    **settings: Any,
) -> Scenario:
    """A scenario of the machine that a listing shows.

    Args:
        groups: listing of its IOMMU groups.
        lspci: lspci's output, whole or in part.
        cpu_vendor: "AuthenticAMD" or "GenuineIntel"; found by the host bridges when not given.
        settings: further keys of a scenario (`pve`, `kernels`, `boot`, `firmware`, `guests`, `files`, ...), which
            win over what is found.

    Raises:
        ListingError: no group in the text.
        ScenarioError: the settings don't make a scenario.
    """
    devices = merge(parse_groups(groups), parse_lspci(lspci) if lspci else {})
    find_parents(devices)
    entries = [_entry(d) for d in sorted(devices.values(), key=lambda d: d.address)]
    _console(entries)
    _storage_and_network(entries)
    vendor = cpu_vendor or _cpu_vendor(entries)
    pve = settings.get("pve", "9.1")
    data = {
        "title": title,
        "pve": pve,
        "kernels": ["6.8.12-9-pve"] if pve == "8.4" else ["6.17.2-1-pve"],
        "cpu": {
            "vendor": vendor,
            "model": "AMD processor" if vendor == "AuthenticAMD" else "Intel processor",
        },
        "pci": entries,
    }
    return scenario_from({**data, **settings}, name, name)


def _entry(listed: Listed) -> dict[str, Any]:
    entry: dict[str, Any] = {"address": listed.address, "group": listed.group, **_UNKNOWN}
    values = {
        "vendor": listed.vendor,
        "device": listed.device,
        "class": listed.pci_class,
        "rev": listed.revision,
        "prog-if": listed.prog_if,
        "subsystem": listed.subsystem,
        "parent": listed.parent,
    }
    entry |= {key: value for key, value in values.items() if value is not None}
    if listed.label is not None:
        entry |= _names(listed.label, entry["vendor"])
    if listed.modules is not None:
        entry["modules"] = [m for m in listed.modules if m not in NVIDIA_HOST_MODULES]
    elif listed.driver_in_use == "xhci_hcd":
        entry |= {"built-in": True}  # a driver at work and no module for it
    return entry


def _names(label: str, vendor: str) -> dict[str, Any]:
    """Vendor and device name of lspci's label; the whole label when the vendor isn't known here."""
    known = VENDORS.get(vendor, "")
    if known and label.startswith(known + " "):
        device = label.removeprefix(known + " ")
        return {"name": None if device == "Device" else device}
    if label.endswith(" Device"):
        return {"vendor-name": label.removesuffix(" Device"), "name": None}
    return {"vendor-name": "", "name": label}


def _cpu_vendor(entries: list[dict[str, Any]]) -> str:
    """By the host bridges on bus 00; AMD when the listing has none with a name."""
    bridges = [e["vendor"] for e in entries if e["class"] == "0600" and e["address"].startswith("0000:00:")]
    return "GenuineIntel" if "8086" in bridges else "AuthenticAMD"


def _console(entries: list[dict[str, Any]]) -> None:
    """The firmware's display: one that isn't NVIDIA's when there is one, else the first."""
    displays = [e for e in entries if e["class"] == "0300"]
    others = [e for e in displays if e["vendor"] != "10de"]
    for entry in (others or displays)[:1]:
        entry["boot-vga"] = True


def _storage_and_network(entries: list[dict[str, Any]]) -> None:
    group = max(e["group"] for e in entries) + 1
    storage = sorted((e for e in entries if e["class"] in _STORAGE), key=lambda e: _STORAGE.index(e["class"]))
    if not storage:
        added = {
            "address": "0000:fd:00.0",
            "vendor": "144d",
            "device": "a80a",
            "class": "0108",
            "group": group,
            "name": "NVMe SSD Controller PM9A1/PM9A3/980PRO",
        }
        entries.append(added)
        storage, group = [added], group + 1
    nvme, sata = 0, 0
    for index, entry in enumerate(storage):
        if entry["class"] == "0108":
            disk, nvme = f"nvme{nvme}n1", nvme + 1
        else:
            disk, sata = f"sd{chr(ord('a') + sata)}", sata + 1
        entry["blocks"] = [{"name": disk, "use": "root" if index == 0 else "unused"}]
    cards = [e for e in entries if e["class"] == "0200"]
    if not cards:
        cards = [
            {
                "address": "0000:fe:00.0",
                "vendor": "8086",
                "device": "125c",
                "class": "0200",
                "group": group,
                "name": "Ethernet Controller I226-V",
            }
        ]
        entries += cards
    for index, entry in enumerate(cards):
        bus, slot, function = entry["address"][5:7], entry["address"][8:10], entry["address"][-1]
        name = f"enp{int(bus, 16)}s{int(slot, 16)}" + (f"f{function}" if function != "0" else "")
        entry["nets"] = [{"name": name, **({"bridge": "vmbr0"} if index == 0 else {})}]
