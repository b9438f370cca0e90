"""The diagnosis of a host: its IOMMU, its cards with their drivers and guests, and its drift. Pure."""

from __future__ import annotations

from typing import Any

from homelab.doctor import cards, logs
from homelab.doctor.reading import Reading
from homelab.doctor.report import Report, Table
from homelab.errors import HomelabError
from homelab.facts import kernel_log
from homelab.findings import Finding, Turn, cured
from homelab.host import handover
from homelab.judged.tree import Tree
from homelab.nvidia import judge
from homelab.settings import Host
from remote_scripts.both.read_system import Answer as SystemReading


def diagnose(reading: Reading, tree: Tree) -> Report:
    """The report on a host: what is judged of it, and its kernel's messages about its cards.

    :param tree: of the same reading.
    """
    facts, host = reading.facts, tree.wanted.host
    slots = {name: card["slot"] for name, card in tree.want.gpus.items()}
    shown_slots = sorted({one.slot for one in facts.display_devices if one.is_nvidia} | set(slots.values()))
    judged = [tree.told_host, *map(tree.told, [*tree.mappings.values(), *tree.leaving.values()])]
    # Of all: the kernel may say something of a card that the settings don't have.
    names = {slot: f"gpus.{name}" for name, slot in slots.items()}
    asked = sorted({one.slot for one in facts.display_devices} | names.keys())
    of_log, remarks = logs.of_kernel(reading, {names.get(slot, slot): slot for slot in asked}, for_vms=host.gives_cards)
    findings = [one for part in judged for one in part.findings]
    findings += Finding.of(*(one for one in tree.refusals if one in tree.others), turn=Turn.REFUSED)
    findings += installed(reading, tree)
    no_iommu = facts.iommu.kernel_log if not facts.iommu.groups else ""
    return Report(
        "host",
        f"host {reading.node}: {facts.kernel}, Proxmox VE {facts.pve or 'not found'}{facts.cluster.described}",
        _head(reading),
        [_settings_table(reading, host, slots), cards.table(reading, shown_slots), _files_table(reading)],
        cured([*findings, *of_log], tree.refusals),
        [
            *([f"the kernel says of the IOMMU: {kernel_log.excerpt(no_iommu)}"] if no_iommu else ()),
            *tree.host.remarks,
            *remarks,
            *tree.unread,
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


def installed(reading: Reading, tree: Tree | None) -> list[Finding]:
    """What is wrong with NVIDIA's driver as it is installed on the host, by the settings or by somebody else."""
    if tree and tree.wanted.host.nvidia:
        return tree.told(tree.systems[f"hosts.{tree.wanted.name}"]).findings
    system = reading.facts.systems.get("host")
    if isinstance(system, HomelabError):
        return Finding.of(system)
    libraries = system.libraries if isinstance(system, SystemReading) else ""
    wrong = judge.mismatch(reading.driver, {"libnvidia-ml.so.1": libraries}) if libraries else None
    wanted = f"NVIDIA's libraries on {reading.node} of the loaded driver's version, {reading.driver}"
    step = "reboot the host; if they differ then, too, install the driver again, all of it of one version"
    return [Finding(wanted, *wrong, step)] if wrong else []


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
        "machine": reading.extra.machine,
        "processor": reading.extra.processor,
        "loader": facts.loader,
        "kernel": facts.kernel,
        "pve": facts.pve or None,
        "iommu": {"groups": facts.iommu.groups, "tables": facts.iommu.tables},
        "cmdline": {"running": facts.cmdline.running, "configured": facts.cmdline.configured},
        "driver": reading.driver or None,
        "gpus": [{"name": name, "use": gpu.use, "slot": slots.get(name)} for name, gpu in host.gpus.items()],
        "cards": [cards.data(reading, slot) for slot in shown_slots],
        "files": [{"layer": file.layer, "path": file.path, "state": file.state} for file in facts.managed],
    }
