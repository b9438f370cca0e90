"""The diagnosis of a host: its IOMMU, its cards with their drivers and guests, and its drift. Pure."""

from __future__ import annotations

from typing import Any

from homelab.container import plan as container_plan
from homelab.doctor import cards
from homelab.doctor.reading import Reading
from homelab.doctor.report import Report, Table
from homelab.errors import HomelabError
from homelab.findings import Finding, Stage, Turn
from homelab.host import gates, handover, kernel_log, plan, remapping, resets
from homelab.host.classes import NVIDIA
from homelab.nvidia import judge, preview
from homelab.nvidia.plan import all_refusals
from homelab.nvidia.reading import SystemReading
from homelab.settings import Host
from remote_scripts.shared.words import missing_words


def diagnose(reading: Reading, host: Host) -> Report:
    """The report on a host: its differences from the settings, refusals, and its kernel's messages about its cards."""
    facts = reading.facts
    slots, _ = gates.resolve(facts, host.gpus)
    slot_set = {device.slot for device in facts.display_devices if device.vendor == NVIDIA} | set(slots.values())
    shown_slots = sorted(slot_set)
    try:
        want, refused = plan.wanted(facts, host), list[HomelabError]()
    except HomelabError as error:
        want, refused = None, [error]
    findings = [*Finding.of(*refused, turn=Turn.REFUSED), *(_wanted(reading, host, want) if want else [])]
    findings += _installed(reading, host, want, refused)
    findings += [*_for_containers(reading, host, slots, want, refused), *_mappings(reading, host, slots)]
    findings += _handed_over(reading, host)
    log_findings, remarks = cards.log_findings(reading, shown_slots, of_host=host.gives_cards)
    findings += log_findings
    findings += _boot(reading)
    return Report(
        "host",
        f"host {reading.node}: {facts.kernel}, Proxmox VE {facts.pve or 'not found'}{facts.cluster.described}",
        _head(reading),
        [_settings_table(reading, host, slots), cards.table(reading, shown_slots), _files_table(reading)],
        findings,
        [
            *_notes(reading),
            *remapping.remarks(remapping.to_be(facts, host), host, slots),
            *_resets(reading, host, slots),
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


def _wanted(reading: Reading, host: Host, planned: plan.Wanted) -> list[Finding]:
    """The errors of a verification, and drift that these don't have."""
    facts = reading.facts
    layers = plan.drift(facts, planned)
    has_files = any(file.layer in layers for file in facts.managed)
    if not has_files and missing_words(planned.words, facts.cmdline.others):
        return [_not_configured(reading, planned)]
    findings = Finding.of(*plan.verify(facts, host, planned))
    # A verification tells of `boot`, `_handed_over` of `handover`.
    drift = {line for layer in layers.keys() - {"boot", "handover"} for line in layers[layer]}
    misplaced = set(plan.misplaced(facts, planned))
    missing = sorted(drift - misplaced)
    if facts.rolled_back:
        missing.append(facts.rolled_back.strip())
    if missing:
        findings.append(
            Finding(
                "the host configured as the settings have it",
                "; ".join(missing),
                "the next boot, or the next kernel, would be without it",
                "`pulumi preview --refresh` shows what would be corrected, `pulumi up --refresh` corrects it",
                Stage.CONFIGURATION,
            )
        )
    return findings


def _not_configured(reading: Reading, planned: plan.Wanted) -> Finding:
    """The finding on a host without any file of this program about cards: before the first `up`, or after a
    `destroy`."""
    functions = [
        reading.facts.by_address[address] for address in planned.functions if address in reading.facts.by_address
    ]
    drivers = "".join(
        f"; {function.address} is on {function.driver or 'no driver'}"
        for function in functions
        if function.driver != "vfio-pci"
    )
    missing = " ".join(missing_words(planned.words, reading.facts.cmdline.others))
    return Finding(
        "the host configured as the settings have it",
        f"no file of this program about cards is there; the kernel's command line lacks {missing}{drivers}",
        "without it the cards stay with the host's drivers",
        "`pulumi preview` shows what would be done, `pulumi up` does it",
    )


def _installed(reading: Reading, host: Host, want: plan.Wanted | None, refused: list[HomelabError]) -> list[Finding]:
    """Findings on what is installed of NVIDIA's driver beside what is loaded."""
    system, name = reading.facts.systems.get("host"), reading.node
    if not isinstance(system, SystemReading):
        return Finding.of(*([system] if isinstance(system, HomelabError) else []), turn=Turn.REFUSED)
    if host.nvidia:
        own = all_refusals(preview.of_host(name, host.nvidia, reading.facts, want, system)) if want else []
        what, differences = f"NVIDIA's stack on {name}", judge.steps(system, host.nvidia)
        differs = judge.judge_stack(what, differences, [*refused, *own], Stage.HOST)
        return [*Finding.of(*own, turn=Turn.REFUSED), *differs]
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


def _for_containers(
    reading: Reading, host: Host, slots: dict[str, str], want: plan.Wanted | None, refused: list[HomelabError]
) -> list[Finding]:
    """Findings on cards with `use: lxc`: what a container that is to have all of them is refused; and those of NVIDIA's
    that come to its driver.
    """
    names = [name for name in slots if host.gpus[name].use == "lxc"]
    own = container_plan.refused_cards(names, reading.facts, host, want, reading.node) if want and names else []
    waiting = [
        f"gpus.{name}: {function.address} is on {function.driver or 'no driver'}"
        for name in names
        for function in reading.facts.functions(slots[name])[:1]
        if function.vendor == NVIDIA and function.address not in reading.cards.values()
    ]
    if not waiting or own:
        return Finding.of(*own, turn=Turn.REFUSED)
    return [
        Finding(
            "the cards for containers with NVIDIA's driver",
            "; ".join(waiting),
            "containers use the host's driver; a card that it doesn't have has no /dev/nvidia node",
            refused[0].next if refused else judge.UP,
            turn=Turn.UP,
        )
    ]


# State in which a handover has stopped -> why it matters, and what to do.
_SINKS = {
    "HELD": (
        "the card is with the host, and a VM didn't get it, or what had it before was not started again",
        "mend what is found: containers that are named are started within ten minutes then, and the VM by you; the "
        "details are in /var/lib/homelab/handover/log",
    ),
    "STUCK": (
        "NVIDIA's driver waits in the kernel for something that still uses the card, and whatever touches the card "
        "next waits, too: nothing is tried while it waits",
        "reboot the host: it then has the card, and containers start as they do at boot; "
        "/var/lib/homelab/handover/log names who had it",
    ),
    "DEAD": (
        "the card doesn't answer as it should; a driver that is given such a card can take the host down",
        "switch the host off and on (a reboot leaves the card its power); if it happens again, look below at how the "
        "card is reset",
    ),
}


def _handed_over(reading: Reading, host: Host) -> list[Finding]:
    """Findings on shared cards, and on the handover's files."""
    findings = []
    for name in host.hands_over:
        state, description = handover.record_of(reading.facts, name).state, handover.state_text(reading.facts, name)
        if state in _SINKS and description:
            why, step = _SINKS[state]
            findings.append(Finding(f"gpus.{name} handed over whole, or not at all", description, why, step))
    missing = plan.lost_handover(reading.facts)
    if missing:
        findings.append(
            Finding(
                "what hands cards from containers to VMs, as `up` installed it",
                "; ".join(missing),
                "a VM would start without its card, or a handover that is cut short would stay half-way",
                "`pulumi up --refresh` puts it back",
                Stage.CONFIGURATION,
            )
        )
    return findings


def _boot(reading: Reading) -> list[Finding]:
    """The finding on ESPs that proxmox-boot-tool should keep, and can't."""
    warnings = reading.facts.boot_warnings.strip()
    if not warnings:
        return []
    return [
        Finding(
            "every boot partition (ESP) that proxmox-boot-tool keeps",
            kernel_log.excerpt(warnings),
            "new kernels and command lines don't reach one that is gone; if the firmware boots from it, they never "
            "come into effect",
            "see `proxmox-boot-tool status`; drop a disk that was taken out with `proxmox-boot-tool clean`, give a new "
            "one its own with `proxmox-boot-tool format PARTITION` and `proxmox-boot-tool init PARTITION`",
        )
    ]


def _mappings(reading: Reading, host: Host, slots: dict[str, str]) -> list[Finding]:
    """Findings on the existing mappings of the settings' cards."""
    mappings = reading.facts.guests.mapping_entries
    names = [host.mapping_of(gpu) for gpu in slots if host.gpus[gpu].may_leave]
    return [finding for name in names if name in mappings for finding in cards.mapping_findings(reading, name)]


def _notes(reading: Reading) -> list[str]:
    facts = reading.facts
    notes = []
    if facts.iommu.kernel_log and not facts.iommu.groups:
        notes.append(f"the kernel says of the IOMMU: {kernel_log.excerpt(facts.iommu.kernel_log)}")
    stale = missing_words(
        " ".join(w for w in facts.cmdline.configured.split() if any(part in w for part in _SHOWN)),
        facts.cmdline.running,
    )
    if stale:
        notes.append(f"configured for the next boot, and not running yet: {' '.join(stale)}")
    return notes


def _resets(reading: Reading, host: Host, slots: dict[str, str]) -> list[str]:
    """Remarks on the resets of cards that go to VMs."""
    facts = reading.facts
    notes = []
    for name, slot in slots.items():
        if host.gpus[name].use == "vm":
            described = resets.described(facts, facts.functions(slot))
            notes += [f"gpus.{name} is reset: {described}"] if described else []
            notes += resets.remarks(facts, f"gpus.{name}", slot)
    return notes


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
