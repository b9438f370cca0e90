"""The diagnosis of a host: its IOMMU, its cards with their drivers and guests, and its drift. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from homelab.cards import resolving
from homelab.container import plan as container_plan
from homelab.doctor import cards
from homelab.doctor.reading import Reading
from homelab.doctor.report import Report, Table
from homelab.errors import HomelabError
from homelab.facts import kernel_log
from homelab.findings import UP, Finding, Stage, Turn, cured
from homelab.host import handover
from homelab.host.judge import JudgedHost, judge_host
from homelab.nvidia import judge
from homelab.nvidia.reading import SystemReading
from homelab.settings import Container, Host, Vm


def diagnose(
    reading: Reading, host: Host, vms: Collection[Vm] = (), refusals: Sequence[HomelabError] = (), stack: str = ""
) -> Report:
    """The report on a host: its differences from the settings, refusals, and its kernel's messages about its cards.

    :param vms: of the settings, on this host.
    :param refusals: what a preview refuses.
    :param stack: PROJECT/STACK; empty: it isn't known.
    """
    facts = reading.facts
    judged = judge_host(facts, host, vms, stack=stack)
    slots, _ = resolving.resolve(facts, host.gpus)
    shown_slots = sorted({one.slot for one in facts.display_devices if one.is_nvidia} | set(slots.values()))
    # That a VM has a shared card is nothing wrong, though nothing can be changed then.
    refused = [] if facts.handover.away else Finding.of(*refusals, turn=Turn.REFUSED)
    findings = [*judged.findings, *refused]
    findings += [*_installed(reading, host), *_for_containers(reading, host, slots, judged)]
    for name in (name for name in slots if host.gpus[name].may_leave):
        findings += cards.mapping_findings(reading, host.mapping_of(name), own=True)
    names = {slot: f"gpus.{name}" for name, slot in slots.items()}
    of_log = {names.get(slot, slot): slot for slot in shown_slots}
    log_findings, remarks = cards.log_findings(reading, of_log, of_host=host.gives_cards)
    findings += log_findings
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


def _installed(reading: Reading, host: Host) -> list[Finding]:
    """Findings on what is installed of NVIDIA's driver beside what is loaded."""
    system, name = reading.facts.systems.get("host"), reading.node
    if not isinstance(system, SystemReading):
        return Finding.of(*([system] if isinstance(system, HomelabError) else []), turn=Turn.REFUSED)
    if host.nvidia:
        return judge.judge_stack(f"NVIDIA's stack on {name}", judge.steps(system, host.nvidia), Stage.HOST)
    wrong = judge.mismatch(reading.driver, {"libnvidia-ml.so.1": system.libraries}) if system.libraries else None
    if wrong is None:
        return []
    return [
        Finding(
            f"NVIDIA's libraries on {name} of the loaded driver's version, {reading.driver}",
            *wrong,
            "reboot the host; if they differ then, too, install the driver again, all of it of one version",
        )
    ]


def _for_containers(reading: Reading, host: Host, slots: dict[str, str], judged: JudgedHost) -> list[Finding]:
    """Findings on cards with `use: lxc`: what a container that is to have all of them is refused; and those of NVIDIA's
    that come to its driver.
    """
    facts, names = reading.facts, [name for name in slots if host.gpus[name].use == "lxc"]
    is_planned = names and not judged.refusals
    container = Container.model_validate({"host": "host", "ctid": 100, "gpus": names})
    own = container_plan.wish_of("NAME", container, facts, judged.want, {}, host).refused if is_planned else ()
    waiting = [
        f"gpus.{name}: {function.address} is on {function.driver or 'no driver'}"
        for name in names
        for function in facts.functions(slots[name])[:1]
        if function.is_nvidia and function.address not in reading.cards.values()
    ]
    if not waiting or own:
        return Finding.of(*own, turn=Turn.REFUSED)
    return [
        Finding(
            "the cards for containers with NVIDIA's driver",
            "; ".join(waiting),
            "containers use the host's driver; a card that it doesn't have has no /dev/nvidia node",
            UP,
            turn=Turn.UP,
        )
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
