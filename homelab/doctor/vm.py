"""The doctor's report of a VM: each hostpci option, and its card's mapping, functions, drivers, group and users.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from homelab.cards import consoles, unfit
from homelab.doctor import cards, logs
from homelab.doctor.reading import Reading, not_here
from homelab.doctor.report import Report, Table
from homelab.facts.guests import GuestConfig
from homelab.findings import Finding, Judged, Stage, cured
from homelab.host import gates, plan
from homelab.host.judge import JudgedHost
from homelab.judged.tree import Tree, owners_vm
from homelab.settings import Gpu
from homelab.vm.cards import hostpci_of
from homelab.vm.refusals import missing
from remote_scripts.pve.guest_kinds import VM
from remote_scripts.pve.properties import parse as parse_properties

# In messages about settings, for a card that they don't have.
_UNNAMED = "<name>"
_NO_GROUPS = "`homelab doctor host` says why; the firmware's switch is VT-d or AMD-Vi (IOMMU)"


def diagnose(reading: Reading, vmid: int, tree: Tree) -> Report:
    """What stands between a VM and its cards.

    :param tree: of the same reading.
    :raises HomelabError: there is no such VM on this host.
    """
    guest = reading.facts.guests.config(vmid)
    if guest is None or guest.guest_kind is not VM:
        raise not_here(reading.facts, VM, vmid)
    config, running = guest.values, vmid in reading.facts.guests.running
    # While it runs, also those that it loses at its next start.
    options = dict(sorted(hostpci_of({**(guest.current if running else {}), **config}).items()))
    places = {key: cards.slots_of(reading, key, value) for key, value in options.items()}
    slots = list(dict.fromkeys(slot for key, value in options.items() for slot in _slots(reading, tree, key, value)))
    name = f"VM {vmid} ({config.get('name', 'no name')})"
    judged = _judged(tree, vmid, slots)
    findings = [one for part in judged for one in part.findings]
    findings += _mappings(reading, options, tree)
    for slot in slots:
        findings += _functions(reading, name, vmid, slot) if running else []
    findings += [] if running else logs.of_start(reading, vmid, name)
    of_log, remarks = logs.of_kernel(reading, dict(zip(slots, slots, strict=True))) if slots else ([], [])
    notes = [line for part in judged if not isinstance(part, JudgedHost) for line in part.remarks]
    notes += remarks + _starts(reading)
    if pending := _pending(guest):
        notes.append(f"pending until it is off and starts again: {'; '.join(pending)}")
    if reading.facts.guests.unlisted:
        notes.append("Proxmox VE's API gave no answer: whether it runs isn't known, and it counts as off")
    if not slots and not options:
        notes.append("no hostpci option: it has no card")
    return Report(
        "vm",
        f"{name} on {reading.node}",
        _head(reading, config, running),
        [_hostpci_table(options, places), cards.table(reading, slots)],
        cured([*findings, *of_log], tree.refusals),
        [*notes, *tree.unread],
        data={
            "node": reading.node,
            "id": vmid,
            **{key: config.get(key) for key in ("name", "lock", "machine", "bios")},
            "running": running,
            "iommuGroups": reading.facts.iommu.groups,
            "hostpci": [{"option": key, "value": options[key], "slots": of_key} for key, of_key in places.items()],
            "cards": [cards.data(reading, slot) for slot in slots],
        },
    )


def _judged(tree: Tree, vmid: int, slots: list[str]) -> list[Judged]:
    """What is judged of a VM, of its cards' mappings, of what is installed in it, and of its host where that can't give
    it a card. One that the settings don't have is judged by its owner's lines.

    :param slots: of the cards that it has.
    """
    facts, of_settings = tree.facts, tree.of_vm(vmid)
    gives_cards, is_unhooked = tree.wanted.host.gives_cards, str(vmid) in facts.handover.lost_hooks
    uses = tree.wanted.vms[of_settings[0]].gpus if of_settings else []
    # Of a card of the settings that isn't found its host tells.
    lacks_card = any(use.gpu not in tree.want.gpus for use in uses)
    of_host = [tree.told_host] if is_unhooked or lacks_card or (gives_cards and not facts.iommu.groups) else []
    without = [] if gives_cards else [error.retold(next=_NO_GROUPS) for error in plan.without_groups(facts)]
    found = [*of_host, Judged(title="", why="", wrong=without), *(_gates(tree, slot) for slot in slots)]
    if of_settings is None:
        return [*found, owners_vm(facts, vmid)]
    name, judged = of_settings
    parts = [tree.mappings[use.gpu] for use in uses if use.gpu in tree.mappings]
    parts += [one] if (one := tree.systems.get(f"vms.{name}")) else []
    return [*found, judged, *map(tree.told, parts)]


def _slots(reading: Reading, tree: Tree, key: str, value: str) -> list[str]:
    """As of `cards.slots_of`; by a mapping of homelab's own that is to be put right, the card of the settings."""
    mapping = parse_properties(key, value).get("mapping")
    own = [gpu for gpu, judged in tree.mappings.items() if judged.steps and tree.wanted.host.mapping_of(gpu) == mapping]
    return [tree.want.gpus[gpu]["slot"] for gpu in own] or cards.slots_of(reading, key, value)


def _gates(tree: Tree, slot: str) -> Judged:
    """What the program's own gates say of a card, with what the settings open, and what is known of it."""
    name = next((gpu for gpu, card in tree.want.gpus.items() if card["slot"] == slot), _UNNAMED)
    gpu = tree.wanted.host.gpus.get(name, Gpu(address=slot))
    # Containers have a shared card while no VM has it, and are shut down for the one that takes it.
    apart = () if gpu.use == "shared" else (gates.containers,)
    errors = [error for gate in (*gates.VERIFIED, *apart) for error in gate(tree.facts, name, gpu, slot)]
    card = tree.facts.card(slot) if name == _UNNAMED else f"gpus.{name}"
    known = [*unfit.remarks(tree.facts, card, slot), *consoles.remarks(tree.facts, tree.wanted.host, card, slot)]
    changes = name != _UNNAMED and tree.has_steps
    return Judged(title="", why="", against=errors, others_change=changes, remarks=known)


def _pending(guest: GuestConfig) -> list[str]:
    """What waits for its next start, of devices."""
    return [
        f"{key}: {value}" if value else f"delete: {key}"
        for key, value in guest.waiting.items()
        if key.startswith(("hostpci", "machine"))
    ]


def _head(reading: Reading, config: dict[str, str], running: bool) -> list[str]:
    return [
        ", ".join(["running" if running else "off", *([f"locked ({config['lock']})"] if "lock" in config else [])]),
        f"machine: {config.get('machine', 'i440fx, the default')}; bios: {config.get('bios', 'seabios, the default')}; "
        f"memory: {config.get('memory', 'default')}; balloon: {config.get('balloon', 'as memory')}",
        f"IOMMU groups: {reading.facts.iommu.groups}",
    ]


def _mappings(reading: Reading, options: dict[str, str], tree: Tree) -> list[Finding]:
    """Of the mappings of its owner's that it names. That one gives nothing is judged of the VM itself."""
    host = tree.wanted.host
    own = {host.mapping_of(name) for name, gpu in host.gpus.items() if gpu.may_leave}
    named = [option for key, value in options.items() if "mapping" in (option := parse_properties(key, value))]
    there = [option["mapping"] for option in named if not missing(option, reading.facts)]
    return [finding for name in there if name not in own for finding in cards.mapping_findings(reading, name)]


def _functions(reading: Reading, name: str, vmid: int, slot: str) -> Iterator[Finding]:
    """While it runs, every function that it has is on vfio-pci; before, Proxmox VE binds them at the start."""
    functions = [function for function in reading.facts.functions(slot) if function.driver != "vfio-pci"]
    wrong = [function for function in functions if reading.facts.options_of(function.address, vmid)]
    if wrong:
        yield Finding(
            f"each function of {reading.facts.card(slot)} that {name} runs with on vfio-pci",
            "; ".join(f"{function.address} is on {function.driver or 'no driver'}" for function in wrong),
            "it runs without the card, or was given it by a configuration that it hasn't been started with yet",
            f"shut it down and start it: `qm shutdown {vmid} && qm start {vmid}`",
            Stage.RESTART,
        )


def _starts(reading: Reading) -> list[str]:
    """What its start would find now of the cards that it has in turn with containers."""
    lines = []
    for start in reading.extra.starts:
        shut_down = ", ".join(start.containers)
        gets = f"it would get gpus.{start.card}" + (f"; shut down for it: container {shut_down}" if shut_down else "")
        refused = f"it would not get gpus.{start.card}: {start.refused}"
        lines.append(f"if it started now: {refused if start.refused else gets}")
    return lines


def _hostpci_table(options: dict[str, str], places: dict[str, list[str]]) -> Table:
    rows = [[key, value, ", ".join(places[key]) or "nothing"] for key, value in options.items()]
    return Table("devices of the configuration", ["option", "value", "slot"], rows)
