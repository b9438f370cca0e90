"""The diagnosis of a host: its IOMMU, its cards with their drivers and guests, and its drift. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from homelab.container import other_makers
from homelab.doctor import cards
from homelab.doctor.reading import Reading
from homelab.doctor.report import Report, Table
from homelab.errors import HomelabError
from homelab.findings import Finding, Turn, cured
from homelab.host import gates, handover, kernel_log, resets
from homelab.host.classes import NVIDIA
from homelab.host.judge import judge_host
from homelab.settings import Host, Vm


def diagnose(reading: Reading, host: Host, vms: Collection[Vm] = (), refusals: Sequence[HomelabError] = ()) -> Report:
    """The report on a host: its differences from the settings, refusals, and its kernel's messages about its cards.

    :param vms: of the settings, on this host.
    :param refusals: what a preview refuses.
    """
    facts = reading.facts
    judged = judge_host(facts, host, vms)
    slots, _ = gates.resolve(facts, host.gpus)
    shown_slots = sorted({one.slot for one in facts.display_devices if one.vendor == NVIDIA} | set(slots.values()))
    # That a VM has a shared card is nothing wrong, though nothing can be changed then.
    refused = [] if facts.handover.away else Finding.of(*refusals, turn=Turn.REFUSED)
    findings = [*judged.findings, *refused]
    findings += _for_containers(reading, host, slots)
    for name in (name for name in slots if host.gpus[name].may_leave):
        findings += cards.mapping_findings(reading, host.mapping_of(name), own=True)
    names = {slot: f"gpus.{name}" for name, slot in slots.items()}
    of_log = {names.get(slot, slot): slot for slot in shown_slots}
    log_findings, remarks = cards.log_findings(reading, of_log, of_host=host.gives_cards)
    findings += log_findings
    of_vms = {name: slot for name, slot in slots.items() if host.gpus[name].use == "vm"}
    reset = {name: resets.described(facts, facts.functions(slot)) for name, slot in of_vms.items()}
    no_iommu = facts.iommu.kernel_log if not facts.iommu.groups else ""
    return Report(
        "host",
        f"host {reading.node}: {facts.kernel}, Proxmox VE {facts.pve or 'not found'}{facts.cluster.described}",
        _head(reading),
        [_settings_table(reading, host, slots), cards.table(reading, shown_slots), _files_table(reading)],
        cured(findings, refusals),
        [
            *([f"the kernel says of the IOMMU: {kernel_log.excerpt(no_iommu)}"] if no_iommu else ()),
            *judged.remarks,
            *(f"gpus.{name} is reset: {described}" for name, described in reset.items() if described),
            *remarks,
        ],
        data=_data(reading, host, slots, shown_slots),
    )


# Parts of command-line words that are about the IOMMU.
_SHOWN = ("iommu", "vfio", "pcie_acs_override", "intremap")


def _head(reading: Reading) -> list[str]:
    facts = reading.facts
    words = [word for word in facts.cmdline.running.split() if any(part in word for part in _SHOWN)]
    return [
        f"IOMMU: {facts.iommu.groups} groups; ACPI tables: {', '.join(facts.iommu.tables) or 'none'}; boot loader: "
        f"{facts.loader or 'not known'}",
        f"on the running kernel's command line: {' '.join(words) or 'nothing about IOMMU or vfio'}",
        f"NVIDIA's driver: {reading.driver or 'not loaded'}; cards that it has: "
        + (
            ", ".join(f"/dev/nvidia{number} is {facts.card(address)}" for number, address in reading.cards.items())
            or "none"
        ),
    ]


def _for_containers(reading: Reading, host: Host, slots: dict[str, str]) -> list[Finding]:
    """Findings on cards with `use: lxc`: one of NVIDIA's without NVIDIA's driver, and another maker's whose driver
    serves no node for computing.
    """
    without_driver, findings = [], []
    for name, slot in slots.items():
        function = next(iter(reading.facts.functions(slot)), None)
        if (
            host.gpus[name].use == "lxc"
            and function
            and function.vendor == NVIDIA
            and function.address not in reading.cards.values()
        ):
            without_driver.append(f"gpus.{name}: {function.address} is on {function.driver or 'no driver'}")
        elif host.gpus[name].use == "lxc" and function and function.vendor != NVIDIA:
            where = f"gpus.{name} ({reading.facts.card(slot)}) for containers"
            if error := other_makers.unserved(where, reading.facts, function, reading.node):
                findings += Finding.of(error)
    if not without_driver:
        return findings
    return [
        *findings,
        Finding(
            "the cards for containers with NVIDIA's driver",
            "; ".join(without_driver),
            "containers use the host's driver; a card that it doesn't have has no /dev/nvidia node",
            "install and load NVIDIA's driver on the host; a card that this program has bound is given back by "
            "`pulumi up` and its reboot",
        ),
    ]


def _settings_table(reading: Reading, host: Host, slots: dict[str, str]) -> Table:
    rows, facts = [], reading.facts
    for name, gpu in host.gpus.items():
        slot = slots.get(name, "")
        drivers = dict.fromkeys(function.driver or "none" for function in reading.facts.functions(slot))
        use = ", ".join(part for part in (gpu.use, handover.state_text(facts, name)) if part)
        rows.append([name, use, facts.card(slot) if slot else "not found", ", ".join(drivers)])
    return Table("cards of the settings", ["name", "use", "card", "drivers"], rows)


def _files_table(reading: Reading) -> Table:
    return Table(
        "files of this program", ["layer", "path", "state"], [[f.layer, f.path, f.state] for f in reading.facts.managed]
    )


def _data(reading: Reading, host: Host, slots: dict[str, str], shown_slots: list[str]) -> dict[str, Any]:
    facts = reading.facts
    return {
        "node": reading.node,
        "kernel": facts.kernel,
        "pve": facts.pve or None,
        "iommu": {"groups": facts.iommu.groups, "tables": facts.iommu.tables},
        "cmdline": {"running": facts.cmdline.running, "configured": facts.cmdline.configured},
        "driver": reading.driver or None,
        "gpus": [{"name": name, "use": gpu.use, "slot": slots.get(name)} for name, gpu in host.gpus.items()],
        "cards": [cards.data(reading, slot) for slot in shown_slots],
        "files": [{"layer": file.layer, "path": file.path, "state": file.state} for file in facts.managed],
    }
