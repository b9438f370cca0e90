"""The doctor's report of a VM: each hostpci option, and its card's mapping, functions, drivers, group and users.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from homelab.cards import resolving
from homelab.doctor import cards, starts
from homelab.doctor.reading import Reading, not_here
from homelab.doctor.report import Report, Table
from homelab.errors import HomelabError
from homelab.findings import Finding, JudgedGuest, Stage, Turn, cured
from homelab.host import gates, plan
from homelab.host.judge import judge_host
from homelab.settings import Gpu, Host, Vm
from homelab.vm import preview
from homelab.vm.cards import Wish, hostpci_of
from homelab.vm.plan import judge_vm, seen_of
from homelab.vm.refusals import missing
from remote_scripts.pve.guest_kinds import VM
from remote_scripts.pve.properties import parse as parse_properties

# In messages about settings, for a card or a VM that they don't have.
_UNNAMED = "<name>"
_NO_GROUPS = "`homelab doctor host` says why; the firmware's switch is VT-d or AMD-Vi (IOMMU)"


def diagnose(
    reading: Reading,
    vmid: int,
    host: Host,
    vms: Mapping[str, Vm],
    stack: str = "",
    refusals: Iterable[HomelabError] = (),
) -> Report:
    """What stands between a VM and its cards.

    :param host: the settings, for the gates that are opened there.
    :param vms: those of the settings that are on the host, by name.
    :param stack: PROJECT/STACK, whose other VMs may lose a card to it.
    :param refusals: what a preview of the host refuses.
    :raises HomelabError: there is no such VM on this host.
    """
    config = _config(reading, vmid)
    running = vmid in reading.facts.guests.running
    # While it runs, also those that it loses at its next start.
    current = next(guest.current for guest in reading.facts.guests.configs if guest.id == vmid) if running else {}
    options = dict(sorted(hostpci_of({**current, **config}).items()))
    slots = list(dict.fromkeys(slot for key, value in options.items() for slot in cards.slots_of(reading, key, value)))
    name = f"VM {vmid} ({config.get('name', 'no name')})"
    findings = [*_of_host(reading, vmid, host, vms, stack), *_mappings(reading, options, host)]
    for slot in slots:
        findings += [*(_functions(reading, name, vmid, slot) if running else []), *_gates(reading, slot, host)]
    findings += [] if running else starts.findings(reading, vmid, name)
    judged = _judged(reading, vmid, host, vms, stack)
    findings, notes = [*findings, *judged.findings], [*judged.remarks]
    if slots:
        of_log, remarks = cards.log_findings(reading, {slot: slot for slot in slots}, of_host=True)
        findings += of_log
        notes += remarks
    notes += _starts(reading)
    if pending := _pending(reading, vmid):
        notes.append(f"pending until it is off and starts again: {'; '.join(pending)}")
    if reading.facts.guests.unlisted:
        notes.append("Proxmox VE's API gave no answer: whether it runs isn't known, and it counts as off")
    if not slots and not options:
        notes.append("no hostpci option: it has no card")
    return Report(
        "vm",
        f"{name} on {reading.node}",
        _head(reading, config, running),
        [_hostpci_table(reading, options), cards.table(reading, slots)],
        cured(findings, refusals),
        notes,
        data=_data(reading, vmid, config, options, slots, running),
    )


def _config(reading: Reading, vmid: int) -> dict[str, str]:
    config = reading.facts.guests.config(vmid)
    if config is None or config.guest_kind is not VM:
        raise not_here(reading.facts, VM, vmid)
    return config.values


def _pending(reading: Reading, vmid: int) -> list[str]:
    """What waits for its next start, of devices."""
    guest = reading.facts.guests.config(vmid)
    waiting = guest.waiting if guest else {}
    return [
        f"{key}: {value}" if value else f"delete: {key}"
        for key, value in waiting.items()
        if key.startswith(("hostpci", "machine"))
    ]


def _head(reading: Reading, config: dict[str, str], running: bool) -> list[str]:
    return [
        ", ".join(["running" if running else "off", *([f"locked ({config['lock']})"] if "lock" in config else [])]),
        f"machine: {config.get('machine', 'i440fx, the default')}; bios: {config.get('bios', 'seabios, the default')}; "
        f"memory: {config.get('memory', 'default')}; balloon: {config.get('balloon', 'as memory')}",
        f"IOMMU groups: {reading.facts.iommu.groups}",
    ]


def _of_host(reading: Reading, vmid: int, host: Host, vms: Mapping[str, Vm], stack: str) -> list[Finding]:
    """What is judged of the host where it can't give the VM a card; arguments as of `diagnose`."""
    facts = reading.facts
    lost = [plan.lost_hook(str(vmid))] * (str(vmid) in facts.handover.lost_hooks)
    if facts.iommu.groups and not lost:
        return []
    if host.gives_cards:
        findings = judge_host(facts, host, vms.values(), stack=stack).findings
    else:
        findings = Finding.of(*(error.retold(next=_NO_GROUPS) for error in plan.without_groups(facts)))
    if any(line in one.found for line in lost for one in findings):
        return findings
    wanted = f"VM {vmid} with the hookscript that takes its shared card from the containers"
    return [*findings, *Finding.of_steps(wanted, lost, "its start would take the card without any check")]


def _mappings(reading: Reading, options: dict[str, str], host: Host) -> list[Finding]:
    """Of the mappings that it names. That an owner's gives nothing is judged of the VM itself."""
    own = {host.mapping_of(gpu) for gpu in host.gpus}
    named = [option for key, value in options.items() if "mapping" in (option := parse_properties(key, value))]
    there = [option["mapping"] for option in named if option["mapping"] in own or not missing(option, reading.facts)]
    return [finding for name in there for finding in cards.mapping_findings(reading, name, own=name in own)]


def _functions(reading: Reading, name: str, vmid: int, slot: str) -> Iterator[Finding]:
    """While it runs, every function that it has is on vfio-pci; before, Proxmox VE binds them at the start."""
    functions = [function for function in reading.facts.functions(slot) if function.driver != "vfio-pci"]
    wrong = [function for function in functions if reading.facts.options_of(function.address, vmid)]
    if not wrong:
        return
    yield Finding(
        f"what {name} has of {reading.facts.card(slot)} on vfio-pci while it runs",
        "; ".join(f"{function.address} is on {function.driver or 'no driver'}" for function in wrong),
        "it runs without the card, or was given it by a configuration that it hasn't been started with yet",
        f"shut it down and start it: `qm shutdown {vmid} && qm start {vmid}`",
        Stage.RESTART,
    )


def _gates(reading: Reading, slot: str, host: Host) -> list[Finding]:
    """What the program's own gates say of the card, with what the settings open."""
    slots, _ = resolving.resolve(reading.facts, host.gpus)
    gpu_name = next((gpu for gpu, its in slots.items() if its == slot), _UNNAMED)
    gpu = host.gpus.get(gpu_name, Gpu(address=slot))
    # Containers have a shared card while no VM has it, and are shut down for the one that takes it.
    apart = () if gpu.use == "shared" else (gates.containers,)
    errors = [error for gate in (*gates.VERIFIED, *apart) for error in gate(reading.facts, gpu_name, gpu, slot)]
    return Finding.of(*errors, turn=Turn.PERSON if gpu_name == _UNNAMED else Turn.REFUSED)


def _starts(reading: Reading) -> list[str]:
    """What its start would find now of the cards that it has in turn with containers."""
    lines = []
    for start in reading.extra.starts:
        shut_down = ", ".join(start.containers)
        gets = f"it would get gpus.{start.card}" + (f"; shut down for it: container {shut_down}" if shut_down else "")
        refused = f"it would not get gpus.{start.card}: {start.refused}"
        lines.append(f"if it started now: {refused if start.refused else gets}")
    return lines


def _judged(reading: Reading, vmid: int, host: Host, vms: Mapping[str, Vm], stack: str) -> JudgedGuest:
    """The VM beside its settings; one that they don't have, or whose cards aren't found, as its owner has it."""
    facts = reading.facts
    seen = seen_of(facts, vmid)
    for name, vm in vms.items():
        if vm.vmid == vmid:
            places, _ = resolving.resolve(facts, host.gpus)
            gpus = {gpu: plan.card_plan(facts, host, gpu, place) for gpu, place in places.items()}
            wish = preview.wish_of(name, vm, host, gpus)
            if len(wish.cards) == len(vm.gpus):
                return judge_vm(seen_of(facts, vmid, wish.takes(host.hands_over), stack), wish, facts)
    return judge_vm(replace(seen, base=seen.config, is_another=False), Wish(_UNNAMED, vmid, []), facts)


def _hostpci_table(reading: Reading, options: dict[str, str]) -> Table:
    rows = [[key, value, ", ".join(cards.slots_of(reading, key, value)) or "nothing"] for key, value in options.items()]
    return Table("devices of the configuration", ["option", "value", "slot"], rows)


def _data(
    reading: Reading, vmid: int, config: dict[str, str], options: dict[str, str], slots: list[str], running: bool
) -> dict[str, Any]:
    return {
        "node": reading.node,
        "id": vmid,
        "name": config.get("name"),
        "running": running,
        "lock": config.get("lock"),
        "machine": config.get("machine"),
        "bios": config.get("bios"),
        "iommuGroups": reading.facts.iommu.groups,
        "hostpci": [
            {"option": key, "value": value, "slots": cards.slots_of(reading, key, value)}
            for key, value in options.items()
        ],
        "cards": [cards.data(reading, slot) for slot in slots],
    }
