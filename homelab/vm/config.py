"""A VM's configuration: what it is to be for its cards, what stands against that, and how it becomes what it was. Pure.

A *record* is what this program changed: key -> `{"ours": value, "before": value or None}`, a hostpci option's with the
`slot` of its card. An empty `ours`: the key was taken away. It is noted on the host before anything is changed, and put
into Pulumi's state, so that nothing is lost whatever happens then.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from homelab.errors import HomelabError, unlocking
from homelab.host.facts import CardUser, Guests
from homelab.properties import TRUE, address, functions_of, overlap, parse, same, slot_of
from homelab.shapes import Record

# PVE::QemuServer::PCI: hostpci0 to hostpci15.
SLOTS = 16
# PVE::QemuServer::PCI, hostpci_fmt.
_DEFAULTS = {"rombar": "1", "pcie": "0", "x-vga": "0", "legacy-igd": "0", "driver": "vfio"}
# Of a hostpci option's options, those that count for each of its devices.
_OF_EACH = ("pcie", "driver")


@dataclass(frozen=True)
class VmCard:
    """One card for a VM. `mapping`: the mapping's id; `slot`: where it is, `0000:01:00`, or its functions, joined by
    `;`, where it shares its slot with others.
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
    take_over: bool = False
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

    def in_place_of(self, line: str, *, first: bool = True) -> str:
        """The value instead of its owner's own one: with that one's options, but for what the settings say otherwise
        than by default.

        :param first: is the card the line's first device? All options but `pcie` and `driver` are of that one alone
            (PVE::QemuServer::PCI, print_hostpci_devices).
        """
        options = parse("hostpci", line)
        kept = {key: options[key] for key in options if key not in ("host", "mapping") and (first or key in _OF_EACH)}
        own = parse("hostpci", self.hostpci)
        place = "host" if self.by_address else "mapping"
        kept |= {key: value for key, value in own.items() if key not in (place, "pcie")}
        if not self.pcie:
            kept.pop("pcie", None)
        return ",".join([f"{place}={own[place]}", *(f"{key}={value}" for key, value in kept.items())])

    def is_in(self, option: str, value: str) -> bool:
        """Does a hostpci option give this card, by whichever form?"""
        found = parse(option, value)
        return found.get("mapping") == self.mapping or overlap(found.get("host", ""), self.slot)


@dataclass(frozen=True)
class Wish:
    """What the settings want of a VM. `vm`: its name there."""

    vm: str
    vmid: int
    cards: list[VmCard]
    machine: str | None = None
    display: str = "keep"
    shared_onboot: bool = False


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
    """Key -> value that the VM is to have; empty: it is not to have the key.

    :param record: of an earlier change; a card keeps its hostpci number.
    """
    record = _still_counting(config, wish.cards, record)
    keys = _hostpci_keys(config, wish.cards, record)
    found = {key: _hostpci(key, card, config, record) for key, card in keys.items()}
    found |= {key: "" for key in _further(config, wish.cards, record) if key not in found}
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


def _still_counting(config: dict[str, str], cards: Iterable[VmCard], record: Record) -> Record:
    """The record without what its owner has replaced since: of a card that is taken over, where he has given it by its
    address anew (or has gone back to a snapshot).

    His lines are then the ones that are put back. Where one is as it was before, a run was interrupted, and the record
    counts.
    """
    raw = ";".join(parse(key, value).get("host", "") for key, value in _hostpci_of(config).items())
    gone: set[str] = set()
    for card in cards:
        keys = [key for key, entry in record.items() if key.startswith("hostpci") and entry.get("slot") == card.slot]
        given = [key for key in keys if ours_of(record[key])]
        held = [
            key
            for key in given
            if any(
                value and same(key, config.get(key), value)
                for value in (ours_of(record[key]), record[key].get("before"))
            )
        ]
        if card.take_over and given and not held and overlap(raw, card.slot):
            gone.update(keys)
    return {key: entry for key, entry in record.items() if key not in gone}


def _hostpci_keys(config: dict[str, str], cards: list[VmCard], record: Record) -> dict[str, VmCard]:
    """The number of each card: the one it has, or had, else the lowest that is free.

    Its mapping counts first: that is the same card's on every node of a cluster, where its slot may be another card's.
    """
    hostpci = _hostpci_of(config)
    ours = {key: ours_of(entry) or "" for key, entry in record.items() if key.startswith("hostpci")}
    chosen: dict[str, VmCard] = {}

    def by_mapping(card: VmCard) -> list[str]:
        found = [key for key, value in hostpci.items() if parse(key, value).get("mapping") == card.mapping]
        found.sort(key=lambda key: key not in ours)
        return found

    def by_former_mapping(card: VmCard) -> list[str]:
        return [key for key, value in ours.items() if parse(key, value).get("mapping") == card.mapping]

    def by_slot(card: VmCard) -> list[str]:
        found = [key for key, entry in record.items() if entry.get("slot") == card.slot and ours_of(entry)]
        mine = [[(key, value) for key, value in values.items() if card.is_in(key, value)] for values in (hostpci, ours)]
        # Of several lines of the owner's, for a function each, that of the first function is the card's.
        mine[0].sort(key=lambda one: min(functions_of(parse(*one).get("host", "")), default=""))
        return found + [key for values in mine for key, _ in values]

    # A number that a card has now is no other one's that had it before.
    for places in (by_mapping, by_former_mapping, by_slot):
        for card in cards:
            key = next((key for key in places(card) if key not in chosen), None)
            if key is not None and card not in chosen.values():
                chosen[key] = card
    for card in cards:
        if card not in chosen.values():
            # One that was taken away for a card that is taken over stays away; one that was a card's is free with it.
            taken = {*hostpci, *chosen, *(key for key, value in ours.items() if not value)}
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


def _hostpci_of(config: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in config.items() if key.startswith("hostpci")}


def _hostpci(key: str, card: VmCard, config: dict[str, str], record: Record) -> str:
    """A card's option: of one that is taken over, as its owner's own line had it."""
    if not card.take_over:
        return card.hostpci
    lines = sorted(owners_lines(config, card, record).items(), key=lambda pair: pair[0] != key)
    # That of the same number was the card's, wherever the card is by now.
    line = record.get(key, {}).get("before") or next((one for _, one in lines), None)
    if line is None:
        return card.hostpci
    devices = functions_of(parse(key, line).get("host", ""))
    return card.in_place_of(line, first=len(set(map(slot_of, devices))) < 2 or overlap(devices[0], card.slot))


def owners_lines(config: dict[str, str], card: VmCard, record: Record) -> dict[str, str]:
    """The options by which its owner gave a VM the card, as they are or, where this program has changed them, as they
    were."""
    lines = {key: value for key, value in _hostpci_of(config).items() if key not in record}
    lines |= {key: str(entry["before"]) for key, entry in record.items() if entry.get("before")}
    return {key: line for key, line in lines.items() if key.startswith("hostpci") and card.is_in(key, line)}


def _further(config: dict[str, str], cards: list[VmCard], record: Record) -> dict[str, VmCard]:
    """Options beside a card's own by which its owner gave it, with the card: a line for each function, such as that of
    its sound. They go, since the card's own one has all of its functions, and come back with it.
    """
    found = {}
    for own, card in _hostpci_keys(config, cards, record).items():
        slot = record[own].get("slot") if own in record else card.slot
        for key, entry in record.items():
            if key.startswith("hostpci") and not ours_of(entry) and entry.get("slot") == slot:
                found[key] = card
        for key, value in _hostpci_of(config).items() if card.take_over else ():
            if key not in record and overlap(parse(key, value).get("host", ""), card.slot):
                found[key] = card
    return found


def ours_of(entry: Mapping[str, str | None]) -> str | None:
    """What a record's entry has set; None: it has taken the key away."""
    return entry.get("ours") or None


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
    record = _still_counting(config, wish.cards, record)
    want = wanted(config, wish, record)
    cards = _further(config, wish.cards, record) | _hostpci_keys(config, wish.cards, record)
    slots = {key: {"slot": card.slot} for key, card in cards.items()}
    made: Record = {}
    for key, value in want.items():
        if key in record:
            made[key] = {"ours": value, "before": record[key].get("before"), **slots.get(key, {})}
        elif not same(key, config.get(key), value or None):
            made[key] = {"ours": value, "before": config.get(key), **slots.get(key, {})}
    return made, {key: entry for key, entry in record.items() if key not in want}


# -- changes ---------------------------------------------------------------------------------------------------------
def change_to(config: dict[str, str], record: Record, restore: Record) -> Change:
    """What is to be written so that `record` holds and `restore` is given back."""
    ours = {key: ours_of(entry) for key, entry in record.items()}
    values = {key: value for key, value in ours.items() if value and not same(key, config.get(key), value)}
    gone = [key for key, value in ours.items() if value is None and key in config]
    back = undo(config, restore)
    return Change({**back.values, **values}, [*(key for key in back.delete if key not in values), *gone])


def undo(config: dict[str, str], record: Record, *, moved: bool = False) -> Change:
    """What is to be written to give back what `record` replaced; what was changed since by others stays as it is. An
    address that is another device's by now isn't put back.

    :param moved: is the VM on another node than the record says?
    """
    values: dict[str, str] = {}
    delete: list[str] = []
    for key, entry in record.items():
        if same(key, config.get(key), ours_of(entry)) and not _is_given_anew(config, key, record):
            if entry.get("before") and not _is_elsewhere(key, entry, moved=moved):
                values[key] = str(entry["before"])
            elif key in config:
                delete.append(key)
    return Change(values, delete)


def _is_elsewhere(key: str, entry: Mapping[str, str | None], *, moved: bool) -> bool:
    """Did a hostpci option name by its address what is no longer there: on another node, or since the card is in
    another slot?"""
    host = parse(key, entry.get("before") or "").get("host", "") if key.startswith("hostpci") else ""
    slot = entry.get("slot") or ""
    return bool(host) and (moved or (bool(slot) and not overlap(host, slot)))


def _is_given_anew(config: Mapping[str, str], key: str, record: Record) -> bool:
    """Did a hostpci option that this program has taken away name what the VM's owner has given it by another one since?
    With both, the VM wouldn't start."""
    entry = record[key]
    host = parse(key, entry.get("before") or "").get("host", "") if key.startswith("hostpci") else ""
    if not host or ours_of(entry):
        return False
    slot = entry.get("slot")
    mappings = {
        parse(one, ours_of(other) or "").get("mapping") for one, other in record.items() if other.get("slot") == slot
    }
    for other, value in _hostpci_of(config).items():
        about = record.get(other, {})
        if any(same(other, value, known) for known in (ours_of(about), about.get("before"))):
            continue
        now = parse(other, value)
        if overlap(now.get("host", ""), host) or ("mapping" in now and now["mapping"] in mappings):
            return True
    return False


def identity(config: dict[str, str]) -> str:
    """What a VM keeps for life, and another one of the same id hasn't: its UUID, or when it was made."""
    return config.get("smbios1") or config.get("meta") or ""


def same_vm(one: str, other: str) -> bool:
    """Are two identities of the same VM? What its owner writes beside its UUID, such as a serial number, makes it no
    other one."""
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
        {key: entry for key, entry in noted.get(part, {}).items() if same(key, config.get(key), ours_of(entry))}
        for part in ("record", "restore")
    ]
    return kept[0], kept[1]


def may_be_ours(config: dict[str, str]) -> bool:
    """Has a VM anything that a record may be of? The machine model alone is nothing: most VMs are made with q35."""
    return (
        any(key.startswith("hostpci") for key in config) or config.get("balloon") == "0" or config.get("vga") == "none"
    )


def not_put_back(config: dict[str, str], record: Record, *, moved: bool = False) -> list[str]:
    """What `undo` doesn't put back, though it was another thing before this program came: somebody has changed it, or
    an address is another device's by now.

    :param moved: as of `undo`.
    """
    stale = [
        f"{key} was {entry['before']} before this program; that address is not this card's any more, and isn't put back"
        for key, entry in record.items()
        if same(key, config.get(key), ours_of(entry)) and _is_elsewhere(key, entry, moved=moved)
    ]
    stale += [
        f"{key} was {entry['before']} before this program, and isn't put back: somebody has given the VM that "
        "device by another option since"
        for key, entry in record.items()
        if same(key, config.get(key), ours_of(entry)) and _is_given_anew(config, key, record)
    ]
    return stale + [
        f"{key} is {config.get(key, 'not there')}, which somebody has set since: it stays so (before this program "
        f"it was {entry['before']})"
        for key, entry in record.items()
        if entry.get("before")
        and not same(key, config.get(key), ours_of(entry))
        and not same(key, config.get(key), entry["before"])
    ]


def drift(config: dict[str, str], record: Record) -> list[str]:
    """How a VM differs from what was recorded, a line each."""
    return [
        f"{key} is {config.get(key, 'not there')} instead of {ours_of(entry) or 'not there'}"
        for key, entry in record.items()
        if not same(key, config.get(key), ours_of(entry))
    ]


# -- what stands against it -------------------------------------------------------------------------------------------
def check(config: dict[str, str], wish: Wish, users: dict[str, list[CardUser]]) -> tuple[list[HomelabError], list[str]]:
    """Everything that is looked at before a VM is stopped: reasons not to go on, and what is to be said.

    :param users: card's name -> the VMs that have it, this one included.
    """
    name = f"VM {wish.vmid} ({config.get('name', wish.vm)})"
    errors = [*_state(config, name), *_model(config, wish, name)]
    notes = _remarks(config, wish, name)
    for card in wish.cards:
        others = [user for user in users.get(card.gpu, []) if user.vmid != wish.vmid]
        errors += _held(name, card, others) + _onboot(config, wish, name, card, others)
        notes += [
            f"{other}, which doesn't run with it now, has {card.gpu} as well: only one of them can run with it at a "
            "time"
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
                why="legacy mode needs the old machine model's place for the graphics: Proxmox VE refuses to start "
                "such a VM with q35",
                next="change the machine to i440fx under the VM's hardware (the guest sees other devices then), or "
                "take legacyIgd out",
            )
        ]
    given = [_hostpci(key, card, config, {}) for key, card in _hostpci_keys(config, wish.cards, {}).items()]
    if wish.machine or "q35" in _machine(config) or not any(_on_pcie(value) for value in given):
        return []
    return [
        HomelabError(
            wanted=f"{name} to have the machine model q35",
            found=f"machine: {config.get('machine', 'i440fx, the default')}",
            why="only q35 has PCI Express, which a modern card's driver expects; Proxmox VE refuses to start such a VM",
            next=f"set vms.{wish.vm}.machine: q35 (the guest sees other devices then: Windows and fixed network "
            "names may need care), or "
            "pcie: false for the card",
        )
    ]


def _on_pcie(value: str) -> bool:
    return parse("hostpci", value).get("pcie", "").lower() in TRUE


def taken_over(
    config: dict[str, str], wish: Wish, record: Record, guests: Guests, node: str, *, certain: bool = True
) -> tuple[list[HomelabError], list[str]]:
    """What stands against making this program's what the VM's owner gave it a card by, and what is to be said of it.

    :param record: of an earlier change.
    :param guests: the host's, with its mappings.
    :param node: the host's name in Proxmox VE.
    :param certain: is the record all that there is? Another node may have one of a VM that has come from there; a
        mapping is the same card's on each.
    """
    name = f"VM {wish.vmid} ({config.get('name', wish.vm)})"
    record = _still_counting(config, wish.cards, record)
    want, errors, notes = wanted(config, wish, record), list[HomelabError](), list[str]()
    for key, value in _hostpci_of(config).items():
        host = parse(key, value).get("host", "")
        cards = [card for card in wish.cards if overlap(host, card.slot)]
        if not host and certain and key not in record and _loses(value, want.get(key)):
            cards = [card for card in wish.cards if parse(key, value).get("mapping") == card.mapping]
        known = key in record and same(key, value, ours_of(record[key]))
        if known or not cards or same(key, value, want.get(key) or None):
            continue
        beyond = [part for part in functions_of(host) if not any(_covers(card, part) for card in wish.cards)]
        asked = [card for card in cards if not card.take_over]
        if asked:
            errors.append(_not_asked(wish, name, asked[0], key, value))
        elif beyond:
            errors.append(_more_than_the_card(config, wish, name, cards[0], key, beyond))
        else:
            notes.append(f"{name}: {key}: {value} was set by hand: it is noted, and put back as it is on destroy")
    for key, value in _hostpci_of(config).items():
        mapping = parse(key, value).get("mapping")
        path = ";".join(guests.places_of(parse(key, value), node)) if mapping and key not in record else ""
        errors += [
            _mapped_otherwise(name, card, key, value)
            for card in wish.cards
            if mapping != card.mapping and overlap(path, card.slot)
        ]
    return errors, notes


def _loses(line: str, wanted: str | None) -> bool:
    """Does a line lose options by becoming what is wanted? What is there by default is none."""
    had, has = ({**_DEFAULTS, **parse("hostpci", text)} for text in (line, wanted or line))
    return any(has.get(key) != value for key, value in had.items() if _DEFAULTS.get(key) != value)


def _mapped_otherwise(name: str, card: VmCard, key: str, value: str) -> HomelabError:
    mapping = parse(key, value)["mapping"]
    return HomelabError(
        wanted=f"{card.gpu} given to {name} by the mapping {card.mapping}",
        found=f"{key}: {value}, set by hand: {mapping} is a mapping of the same card",
        why="with both, the VM would be given the card twice, and wouldn't start",
        next=f"set mapping: {mapping} for the host's gpus.{card.gpu}, which homelab init does: that mapping is used "
        "then, and stays",
    )


def is_roots_alone(value: str) -> bool:
    """Does Proxmox VE let root@pam alone set, change or take away such a hostpci option, and no token (PVE::API2::Qemu,
    check_hostpci_perm)?"""
    options = parse("hostpci", value)
    return "mapping" not in options or "romfile" in options


def _covers(card: VmCard, part: str) -> bool:
    return any(part == own or part.startswith(f"{own}.") for own in functions_of(card.slot))


def _not_asked(wish: Wish, name: str, card: VmCard, key: str, value: str) -> HomelabError:
    return HomelabError(
        wanted=f"{card.gpu} given to {name}",
        found=f"{key}: {value}, set by hand",
        why="that line is not this program's. It is changed with your consent only: then the mapping takes the "
        "address's place, the line's other options stay, and "
        "`pulumi destroy` puts the line back as it was",
        next=f"set takeOver: true for the card (vms.{wish.vm}.gpus: {{gpu: {card.gpu}, takeOver: true}}), which "
        f"homelab init does; or take {card.gpu} out of "
        f"vms.{wish.vm}.gpus, and the VM keeps it as it is",
    )


def _more_than_the_card(
    config: dict[str, str], wish: Wish, name: str, card: VmCard, key: str, beyond: list[str]
) -> HomelabError:
    line = config[key]
    host, comma, options = line.removeprefix("host=").partition(",")
    left = ";".join(part for part in host.split(";") if address(part) not in beyond)
    free = next((f"hostpci{number}" for number in range(SLOTS) if f"hostpci{number}" not in config), "hostpciN")
    functions = [part for part in beyond if slot_of(part) in map(slot_of, functions_of(card.slot))]
    apart = (
        "give the rest an option of its own, while the VM is off: "
        f"`qm set {wish.vmid} --{key} '{left}{comma}{options}' --{free} '{';'.join(beyond)},pcie=1'`"
    )
    named = f"name those of its functions that the VM is to have in the host's gpus.{card.gpu}.functions"
    return HomelabError(
        wanted=f"{key} of {name} taken over for {card.gpu}",
        found=f"{key}: {line}, which gives the VM more than {card.gpu} ({card.slot}): {', '.join(beyond)}",
        why="the mapping stands for that card alone: the VM would lose the rest",
        next=named if functions else apart,
    )


def _held(name: str, card: VmCard, others: Iterable[CardUser]) -> list[HomelabError]:
    return [
        HomelabError(
            wanted=f"{card.gpu} ({card.called or card.slot}) free for {name}",
            found=f"{other} runs with it",
            why="a card can be in one running VM only; nothing was stopped for it",
            next=f"shut {other} down (`qm shutdown {other.vmid}`), or take the card out of it, then run `pulumi up` "
            "again",
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
            next=f"switch onboot off for one (`qm set {other.vmid} --onboot 0`), or accept it with "
            f"vms.{wish.vm}.allowSharedOnboot: true",
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
            f"{name} starts by SeaBIOS: OVMF is recommended, as cards' firmware is made for UEFI and large BARs (a "
            "whole GPU's memory) "
            "are only placed by it. Changing it takes a bootable UEFI system inside"
        )
    if _balloons(config):
        notes.append(
            f"{name}: balloon: {config['balloon']} becomes 0: a card pins all of the VM's memory; it is put back on "
            "destroy"
        )
    if "parent" in config:
        notes.append(f"{name} has snapshots: with a card, none with RAM can be made or returned to while it runs")
    notes.append(f"{name}: while it has a card it can't be migrated while it runs, nor suspended")
    return notes
