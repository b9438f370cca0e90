"""A VM's configuration: what it is to be for its cards, what stands against that, and how it becomes what it was. Pure.

A *record* is what this program changed: key -> `{"ours": value, "before": value or None}`, a hostpci option's with the `slot` of
its card. It is kept in Pulumi's state before anything is changed, so that nothing is lost whatever happens then.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from homelab.errors import HomelabError, unlocking
from homelab.host.facts import CardUser
from homelab.properties import overlap, parse, same
from homelab.shapes import Record

# PVE::QemuServer::PCI: hostpci0 to hostpci15.
SLOTS = 16


@dataclass(frozen=True)
class VmCard:
    """One card for a VM. `mapping`: the mapping's id; `slot`: where it is, `0000:01:00`, or its functions, joined by `;`,
    where it shares its slot with others.
    """

    gpu: str
    mapping: str
    slot: str
    x_vga: bool = False
    rombar: bool = True
    pcie: bool = True
    romfile: str | None = None
    by_address: bool = False
    legacy_igd: bool = False
    driver: str = "vfio"
    # As messages call it (host/names.py), where the host was read.
    called: str = field(default="", compare=False)

    @property
    def hostpci(self) -> str:
        """The value of the hostpci option, in the order in which Proxmox VE's own interface writes it."""
        parts = [f"host={self.slot}" if self.by_address else f"mapping={self.mapping}"]
        parts += [f"driver={self.driver}"] if self.driver != "vfio" else []
        parts += ["legacy-igd=1"] if self.legacy_igd else []
        parts += ["pcie=1"] if self.pcie else []
        parts += [] if self.rombar else ["rombar=0"]
        parts += [f"romfile={self.romfile}"] if self.romfile else []
        return ",".join([*parts, "x-vga=1"] if self.x_vga else parts)

    def is_in(self, option: str, value: str) -> bool:
        """Does a hostpci option give this card, by whichever form?"""
        found = parse(option, value)
        return found.get("mapping") == self.mapping or overlap(found.get("host", ""), self.slot)


@dataclass(frozen=True)
class Wish:
    """What the settings want of a VM. `vm`: its name there; `may_replace_raw`: are we root@pam itself?"""

    vm: str
    vmid: int
    cards: list[VmCard]
    machine: str | None = None
    display: str = "keep"
    shared_onboot: bool = False
    may_replace_raw: bool = False


@dataclass(frozen=True)
class Change:
    """Keys to set, and keys to take away."""

    values: dict[str, str] = field(default_factory=dict)
    delete: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.values or self.delete)

    @property
    def keys(self) -> list[str]:
        return [*self.values, *self.delete]


def strings(config: dict[str, Any]) -> dict[str, str]:
    """A configuration as the API gives it, all values as text, without the digest."""
    return {key: str(value) for key, value in config.items() if key != "digest"}


# -- what is wanted --------------------------------------------------------------------------------------------------
def wanted(config: dict[str, str], wish: Wish, record: Record) -> dict[str, str]:
    """Key -> value that the VM is to have.

    :param record: of an earlier change; a card keeps its hostpci number.
    """
    keys = _hostpci_keys(config, wish.cards, record)
    found = {key: card.hostpci for key, card in keys.items()}
    if wish.machine and "q35" not in _machine(config):
        found["machine"] = wish.machine
    if wish.machine and "machine" in record:
        found["machine"] = wish.machine
    if wish.cards and (_balloons(config) or "balloon" in record):
        # A card's DMA pins all of a VM's memory: a balloon could only take what the host doesn't get back.
        found["balloon"] = "0"
    if wish.display == "none":
        found["vga"] = "none"
    return found


def _hostpci_keys(config: dict[str, str], cards: list[VmCard], record: Record) -> dict[str, VmCard]:
    """The number of each card: the one it has, or had, else the lowest that is free.

    Its mapping counts first: that is the same card's on every node of a cluster, where its slot may be another card's.
    """
    hostpci = {key: value for key, value in config.items() if key.startswith("hostpci")}
    ours = {key: str(entry["ours"]) for key, entry in record.items() if key.startswith("hostpci")}
    chosen: dict[str, VmCard] = {}

    def by_mapping(card: VmCard) -> list[str]:
        found = [key for key, value in hostpci.items() if parse(key, value).get("mapping") == card.mapping]
        found.sort(key=lambda key: key not in ours)
        return found + [key for key, value in ours.items() if parse(key, value).get("mapping") == card.mapping]

    def by_slot(card: VmCard) -> list[str]:
        found = [key for key, entry in record.items() if entry.get("slot") == card.slot]
        return found + [key for values in (hostpci, ours) for key, value in values.items() if card.is_in(key, value)]

    for places in (by_mapping, by_slot):
        for card in cards:
            key = next((key for key in places(card) if key not in chosen), None)
            if key is not None and card not in chosen.values():
                chosen[key] = card
    for card in cards:
        if card not in chosen.values():
            taken = {*hostpci, *chosen}
            free = next((f"hostpci{number}" for number in range(SLOTS) if f"hostpci{number}" not in taken), None)
            if free is None:
                raise HomelabError(
                    wanted=f"a free hostpci option for {card.gpu}",
                    found=f"all {SLOTS} are taken",
                    why="a VM has no more of them",
                    next="take a device out of the VM",
                )
            chosen[free] = card
    return chosen


def _machine(config: dict[str, str]) -> str:
    return parse("machine", config.get("machine", "")).get("type", "pc")


def _balloons(config: dict[str, str]) -> bool:
    """Is memory taken and given while the VM runs? A balloon as large as the memory only reports its use."""
    balloon = config.get("balloon", "0")
    return balloon not in ("0", parse("memory", config.get("memory", "512")).get("current"))


def recorded(config: dict[str, str], wish: Wish, record: Record) -> tuple[Record, Record]:
    """The new record, and what of the old one is to be given back.

    A value that already was as wanted isn't this program's, and is left alone later.
    """
    want = wanted(config, wish, record)
    slots = {key: {"slot": card.slot} for key, card in _hostpci_keys(config, wish.cards, record).items()}
    made: Record = {}
    for key, value in want.items():
        if key in record:
            made[key] = {"ours": value, "before": record[key].get("before"), **slots.get(key, {})}
        elif not same(key, config.get(key), value):
            made[key] = {"ours": value, "before": config.get(key), **slots.get(key, {})}
    return made, {key: entry for key, entry in record.items() if key not in want}


# -- changes ---------------------------------------------------------------------------------------------------------
def change_to(config: dict[str, str], record: Record, restore: Record) -> Change:
    """What is to be written so that `record` holds and `restore` is given back."""
    values = {key: str(e["ours"]) for key, e in record.items() if not same(key, config.get(key), e["ours"])}
    back = undo(config, restore)
    return Change({**back.values, **values}, [key for key in back.delete if key not in values])


def undo(config: dict[str, str], record: Record) -> Change:
    """What is to be written to give back what `record` replaced; what was changed since by others stays as it is."""
    values: dict[str, str] = {}
    delete: list[str] = []
    for key, entry in record.items():
        if key in config and same(key, config[key], entry["ours"]):
            if entry.get("before") is None:
                delete.append(key)
            else:
                values[key] = str(entry["before"])
    return Change(values, delete)


def identity(config: dict[str, str]) -> str:
    """What a VM keeps for life, and another one of the same id hasn't: its UUID, or when it was made."""
    return config.get("smbios1") or config.get("meta") or ""


def same_vm(one: str, other: str) -> bool:
    """Are two identities of the same VM? What its owner writes beside its UUID, such as a serial number, makes it no other one."""
    found = [re.search(r"\buuid=([0-9A-Fa-f-]+)", text) for text in (one, other)]
    uuids = [match[1].lower() for match in found if match]
    return uuids[0] == uuids[1] if len(uuids) == 2 else one == other


def noted_of(config: dict[str, str], noted: dict[str, Any] | None) -> tuple[Record, Record]:
    """What is still ours of what was noted of a VM (homelab/remote/ledger.py): `record` and `restore`.

    What has another value by now was set by others. If the id is another VM's now, nothing of it counts.
    """
    if noted is None or not same_vm(str(noted.get("identity", "")), identity(config)):
        return {}, {}
    kept = [
        {key: entry for key, entry in noted.get(part, {}).items() if same(key, config.get(key), entry["ours"])}
        for part in ("record", "restore")
    ]
    return kept[0], kept[1]


def may_be_ours(config: dict[str, str]) -> bool:
    """Has a VM anything that a record may be of? The machine model alone is nothing: most VMs are made with q35."""
    return (
        any(key.startswith("hostpci") for key in config) or config.get("balloon") == "0" or config.get("vga") == "none"
    )


def drift(config: dict[str, str], record: Record) -> list[str]:
    """How a VM differs from what was recorded, a line each."""
    return [
        f"{key} is {config.get(key, 'not there')} instead of {entry['ours']}"
        for key, entry in record.items()
        if not same(key, config.get(key), entry["ours"])
    ]


# -- what stands against it -------------------------------------------------------------------------------------------
def check(config: dict[str, str], wish: Wish, users: dict[str, list[CardUser]]) -> tuple[list[HomelabError], list[str]]:
    """Everything that is looked at before a VM is stopped: reasons not to go on, and what is to be said.

    :param users: card's name -> the VMs that have it, this one included.
    """
    name = f"VM {wish.vmid} ({config.get('name', wish.vm)})"
    errors = [*_state(config, name), *_model(config, wish, name), *_raw(config, wish, name)]
    notes = _remarks(config, wish, name)
    for card in wish.cards:
        others = [user for user in users.get(card.gpu, []) if user.vmid != wish.vmid]
        errors += _held(name, card, others) + _onboot(config, wish, name, card, others)
        notes += [
            f"{other}, which doesn't run with it now, has {card.gpu} as well: only one of them can run with it at a time"
            for other in others
            if not other.running
        ]
    return errors, notes


def _state(config: dict[str, str], name: str) -> list[HomelabError]:
    errors = []
    if "lock" in config:
        errors.append(
            HomelabError(
                wanted=f"{name} free to be changed",
                found=f"it is locked ({config['lock']})",
                why="a task works on it, or died while it did; or it sleeps on disk (suspended)",
                next=f"{unlocking('qemu', name.split()[1], config['lock'])}; then run `pulumi up` again",
            )
        )
    if config.get("template") == "1":
        errors.append(
            HomelabError(
                wanted=f"{name} to be a VM",
                found="it is a template",
                why="a template never runs",
                next="give the id of a VM made from it",
            )
        )
    return errors


def _model(config: dict[str, str], wish: Wish, name: str) -> list[HomelabError]:
    if "q35" in _machine(config) and any(card.legacy_igd for card in wish.cards):
        return [
            HomelabError(
                wanted=f"{name} to have the machine model pc (i440fx), for a card with legacyIgd",
                found=f"machine: {config['machine']}",
                why="legacy mode needs the old machine model's place for the graphics: Proxmox VE refuses to start such a VM with q35",
                next="change the machine to i440fx under the VM's hardware (the guest sees other devices then), or take legacyIgd out",
            )
        ]
    if wish.machine or "q35" in _machine(config) or not any(card.pcie for card in wish.cards):
        return []
    return [
        HomelabError(
            wanted=f"{name} to have the machine model q35",
            found=f"machine: {config.get('machine', 'i440fx, the default')}",
            why="only q35 has PCI Express, which a modern card's driver expects; Proxmox VE refuses to start such a VM",
            next=f"set vms.{wish.vm}.machine: q35 (the guest sees other devices then: Windows and fixed network names may need care), or "
            "pcie: false for the card",
        )
    ]


def _raw(config: dict[str, str], wish: Wish, name: str) -> list[HomelabError]:
    """A token can't replace a device that was given by its address."""
    return [
        HomelabError(
            wanted=f"{card.gpu} given to {name} by its mapping",
            found=f"{key}: {value}, set by hand",
            why="in Proxmox VE only root@pam with a password may replace a device that is given by its address",
            next=f"remove it once (`qm set {wish.vmid} --delete {key}`), or give api.user: root@pam and api.password",
        )
        for card in wish.cards
        for key, value in config.items()
        if key.startswith("hostpci")
        and overlap(parse(key, value).get("host", ""), card.slot)
        and not same(key, value, card.hostpci)
        and not wish.may_replace_raw
    ]


def _held(name: str, card: VmCard, others: Iterable[CardUser]) -> list[HomelabError]:
    return [
        HomelabError(
            wanted=f"{card.gpu} ({card.called or card.slot}) free for {name}",
            found=f"{other} runs with it",
            why="a card can be in one running VM only; nothing was stopped for it",
            next=f"shut {other} down (`qm shutdown {other.vmid}`), or take the card out of it, then run `pulumi up` again",
        )
        for other in others
        if other.running
    ]


def _onboot(
    config: dict[str, str], wish: Wish, name: str, card: VmCard, others: Iterable[CardUser]
) -> list[HomelabError]:
    if config.get("onboot") != "1" or wish.shared_onboot:
        return []
    return [
        HomelabError(
            wanted=f"one VM with {card.gpu} to start with the host",
            found=f"{name} and {other} both have onboot: 1",
            why="the second of them fails to start at every boot of the host",
            next=f"switch onboot off for one (`qm set {other.vmid} --onboot 0`), or accept it with vms.{wish.vm}.allowSharedOnboot: true",
        )
        for other in others
        if other.onboot
    ]


def _remarks(config: dict[str, str], wish: Wish, name: str) -> list[str]:
    if not wish.cards:
        return []
    notes = []
    if config.get("bios", "seabios") != "ovmf":
        notes.append(
            f"{name} starts by SeaBIOS: OVMF is recommended, as cards' firmware is made for UEFI and large BARs (a whole GPU's memory) "
            "are only placed by it. Changing it takes a bootable UEFI system inside"
        )
    if _balloons(config):
        notes.append(
            f"{name}: balloon: {config['balloon']} becomes 0: a card pins all of the VM's memory; it is put back on destroy"
        )
    if "parent" in config:
        notes.append(f"{name} has snapshots: with a card, none with RAM can be made or returned to while it runs")
    notes.append(f"{name}: while it has a card it can't be migrated while it runs, nor suspended")
    return notes
