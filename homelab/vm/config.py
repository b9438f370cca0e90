"""The options of a VM's configuration that give it its cards: the wanted ones, refusals, and the way back to the
originals. Pure.

A *record* has the options that homelab has changed: key -> `{"ours": value, "before": value or None}`, a hostpci
option's with the `slot` of its card. An empty `ours`: the key was taken away. `was`: the earlier `ours`, until a run
that replaces it has ended well: a change that fails is taken back, and the VM has that value again. The record is
written to the host's ledger before anything is changed, and to Pulumi's state, so that an interrupted run loses
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from homelab.errors import HomelabError, unlocking
from homelab.host.facts import CardUser, Guests
from homelab.properties import same, slot_of
from homelab.shapes import Record
from remote_scripts.shared.booleans import is_true
from remote_scripts.shared.properties import address, functions_of, overlap, parse

# The number of hostpci options, hostpci0 to hostpci15 (PVE::QemuServer::PCI).
SLOTS = 16
# Properties' default values (PVE::QemuServer::PCI, hostpci_fmt).
_DEFAULTS = {"rombar": "1", "pcie": "0", "x-vga": "0", "legacy-igd": "0", "driver": "vfio"}
# Properties of a hostpci option that count for each of its devices; all others are the first device's alone.
_OF_EACH_DEVICE = ("pcie", "driver")


@dataclass(frozen=True)
class VmCard:
    """One card for a VM. `gpu`: its name in the settings; `mapping`: the mapping's id; `slot`: `0000:01:00`, or the
    card's functions, joined by `;`, if other functions are in its slot; `name`: for messages (host/names.py), empty
    without a reading of the host.
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
    name: str = field(default="", compare=False)

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

    def in_place_of(self, line: str, *, first: bool) -> str:
        """The value of the hostpci option in place of a line of the user's: with that line's properties, unless the
        settings have other values than the defaults.

        :param line: the value of the user's option.
        :param first: whether the card is the line's first device. All properties but `pcie` and `driver` are of that
            device alone (PVE::QemuServer::PCI, print_hostpci_devices).
        """
        before = parse("hostpci", line)
        properties = {
            key: value
            for key, value in before.items()
            if key not in ("host", "mapping") and (first or key in _OF_EACH_DEVICE)
        }
        card_properties = parse("hostpci", self.hostpci)
        place = "host" if self.by_address else "mapping"
        properties |= {key: value for key, value in card_properties.items() if key not in (place, "pcie")}
        if not self.pcie:
            properties.pop("pcie", None)
        return ",".join([f"{place}={card_properties[place]}", *(f"{key}={value}" for key, value in properties.items())])

    def is_in(self, option: str, value: str) -> bool:
        """Whether a hostpci option gives this card, by a mapping or by an address."""
        properties = parse(option, value)
        return properties.get("mapping") == self.mapping or overlap(properties.get("host", ""), self.slot)


@dataclass(frozen=True)
class Wish:
    """What the settings want of a VM. `vm`: its name in the settings; `machine`: None: as it is."""

    vm: str
    vmid: int
    cards: list[VmCard]
    machine: str | None = None
    display: str = "keep"
    shared_onboot: bool = False


@dataclass(frozen=True)
class Change:
    """A change of a VM's options. `values`: to set, by key; `delete`: keys to take away."""

    values: dict[str, str] = field(default_factory=dict)
    delete: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.values or self.delete)

    @property
    def keys(self) -> list[str]:
        return [*self.values, *self.delete]


def strings(config: dict[str, Any]) -> dict[str, str]:
    """A VM's options with their values as text, without the digest.

    :param config: as the API gives it.
    """
    return {key: str(value) for key, value in config.items() if key != "digest"}


# -- wanted options --------------------------------------------------------------------------------------------------
def wanted(config: dict[str, str], wish: Wish, record: Record) -> dict[str, str]:
    """The options that the VM is to have for its cards: key -> value; an empty value: it is not to have the key.

    :param record: of an earlier change; by it a card keeps its hostpci number.
    """
    record = _current_record(config, wish.cards, record)
    keys = _hostpci_keys(config, wish.cards, record)
    options = {key: _hostpci(key, card, config, record) for key, card in keys.items()}
    options |= {key: "" for key in _further(config, wish.cards, record) if key not in options}
    if wish.machine and "q35" not in _machine(config):
        options["machine"] = wish.machine
    if wish.machine and "machine" in record:
        options["machine"] = wish.machine
    if wish.cards and (_balloons(config) or "balloon" in record):
        # A card's DMA pins all of a VM's memory: a balloon could only take what the host doesn't get back.
        options["balloon"] = "0"
    if wish.display == "none":
        options["vga"] = "none"
    return options


def _current_record(config: dict[str, str], cards: Iterable[VmCard], record: Record) -> Record:
    """The record without the entries that the user's own lines have replaced since: those of a card that is taken over,
    if the user has given it to the VM by its address anew (or has rolled back to a snapshot).

    The user's lines are then the originals. If an option still has its original value, a run was interrupted, and the
    record stays valid.
    """
    addresses = ";".join(parse(key, value).get("host", "") for key, value in _hostpci_of(config).items())
    replaced: set[str] = set()
    for card in cards:
        keys = [key for key, entry in record.items() if key.startswith("hostpci") and entry.get("slot") == card.slot]
        set_keys = [key for key in keys if ours_of(record[key])]
        unchanged = [
            key
            for key in set_keys
            if key in config
            and (is_ours(key, config[key], record[key]) or same(key, config[key], record[key].get("before")))
        ]
        if card.take_over and set_keys and not unchanged and overlap(addresses, card.slot):
            replaced.update(keys)
    return {key: entry for key, entry in record.items() if key not in replaced}


def _hostpci_keys(config: dict[str, str], cards: list[VmCard], record: Record) -> dict[str, VmCard]:
    """The hostpci option of each card: the one that it has, or had, else the free one of the lowest number.

    A card is looked for by its mapping first: on every node of a cluster that is the same card's, while its slot may be
    another card's there.
    """
    hostpci = _hostpci_of(config)
    recorded_values = {key: ours_of(entry) or "" for key, entry in record.items() if key.startswith("hostpci")}
    chosen: dict[str, VmCard] = {}

    def by_mapping(card: VmCard) -> list[str]:
        keys = [key for key, value in hostpci.items() if parse(key, value).get("mapping") == card.mapping]
        keys.sort(key=lambda key: key not in recorded_values)
        return keys

    def by_former_mapping(card: VmCard) -> list[str]:
        return [key for key, value in recorded_values.items() if parse(key, value).get("mapping") == card.mapping]

    def by_slot(card: VmCard) -> list[str]:
        keys = [key for key, entry in record.items() if entry.get("slot") == card.slot and ours_of(entry)]
        current, former = (
            [(key, value) for key, value in values.items() if card.is_in(key, value)]
            for values in (hostpci, recorded_values)
        )
        # Of several lines of the user's, for a function each, the card gets that of its first function.
        current.sort(key=lambda option: min(functions_of(parse(*option).get("host", "")), default=""))
        return keys + [key for key, _ in (*current, *former)]

    # An option that a card has now isn't given to a card that had it before.
    for keys_of in (by_mapping, by_former_mapping, by_slot):
        for card in cards:
            key = next((key for key in keys_of(card) if key not in chosen), None)
            if key is not None and card not in chosen.values():
                chosen[key] = card
    for card in cards:
        if card not in chosen.values():
            # An option that was taken away with a card that is taken over isn't free; one of a former card is.
            taken = {*hostpci, *chosen, *(key for key, value in recorded_values.items() if not value)}
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
    """The value of a card's option; with the properties of the user's own line, if the card is taken over."""
    if not card.take_over:
        return card.hostpci
    lines = sorted(owners_lines(config, card, record).items(), key=lambda pair: pair[0] != key)
    # The line of the same number was the card's, whatever slot the card is in now.
    line = record.get(key, {}).get("before") or next((value for _, value in lines), None)
    if line is None:
        return card.hostpci
    devices = functions_of(parse(key, line).get("host", ""))
    return card.in_place_of(line, first=len(set(map(slot_of, devices))) < 2 or overlap(devices[0], card.slot))


def owners_lines(config: dict[str, str], card: VmCard, record: Record) -> dict[str, str]:
    """The options by which the user gave a VM the card, by key: current ones, and originals of those that homelab has
    changed."""
    lines = {key: value for key, value in _hostpci_of(config).items() if key not in record}
    lines |= {key: str(entry["before"]) for key, entry in record.items() if entry.get("before")}
    return {key: line for key, line in lines.items() if key.startswith("hostpci") and card.is_in(key, line)}


def _further(config: dict[str, str], cards: list[VmCard], record: Record) -> dict[str, VmCard]:
    """The user's options for further functions of a card, such as its sound, with the card. They are taken away, since
    the card's own option has all of its functions, and come back when that goes.
    """
    cards_by_key = {}
    for own, card in _hostpci_keys(config, cards, record).items():
        slot = record[own].get("slot") if own in record else card.slot
        for key, entry in record.items():
            if key.startswith("hostpci") and not ours_of(entry) and entry.get("slot") == slot:
                cards_by_key[key] = card
        for key, value in _hostpci_of(config).items() if card.take_over else ():
            if key not in record and overlap(parse(key, value).get("host", ""), card.slot):
                cards_by_key[key] = card
    return cards_by_key


def ours_of(entry: Mapping[str, str | None]) -> str | None:
    """The value that homelab has set by a record's entry; None: it has taken the key away."""
    return entry.get("ours") or None


def is_ours(key: str, value: str | None, entry: Mapping[str, str | None]) -> bool:
    """Whether a value is the one that homelab has set by a record's entry, or the one that it replaces by it.

    :param value: None: the VM doesn't have the key.
    """
    return any(same(key, value, ours) for ours in _values_of(entry))


def _values_of(entry: Mapping[str, str | None]) -> list[str | None]:
    """The values that a VM may have by a record's entry; None: without the key."""
    return [ours_of(entry), *([entry["was"] or None] if "was" in entry else [])]


def settled(record: Record) -> Record:
    """The record after a run that has ended well: without the values that it has replaced."""
    return {key: {name: value for name, value in entry.items() if name != "was"} for key, entry in record.items()}


def _machine(config: dict[str, str]) -> str:
    return parse("machine", config.get("machine", "")).get("type", "pc")


def _balloons(config: dict[str, str]) -> bool:
    """Whether the VM's memory changes while it runs; a balloon as large as the memory only reports its use."""
    balloon = config.get("balloon", "0")
    return balloon not in ("0", parse("memory", config.get("memory", "512")).get("current"))


def recorded(config: dict[str, str], wish: Wish, record: Record) -> tuple[Record, Record]:
    """The new record, and the entries of the old one whose originals are to be put back.

    A value that already was as wanted isn't recorded, and so isn't changed later.
    """
    record = _current_record(config, wish.cards, record)
    wanted_options = wanted(config, wish, record)
    cards = _further(config, wish.cards, record) | _hostpci_keys(config, wish.cards, record)
    slots = {key: {"slot": card.slot} for key, card in cards.items()}
    new: Record = {}
    for key, value in wanted_options.items():
        if key in record:
            current = config.get(key)
            is_replaced = is_ours(key, current, record[key]) and not same(key, current, value or None)
            was = {"was": current or ""} if is_replaced else {}
            new[key] = {"ours": value, "before": record[key].get("before"), **slots.get(key, {}), **was}
        elif not same(key, config.get(key), value or None):
            new[key] = {"ours": value, "before": config.get(key), **slots.get(key, {})}
    return new, {key: entry for key, entry in record.items() if key not in wanted_options}


# -- changes ---------------------------------------------------------------------------------------------------------
def change_to(config: dict[str, str], record: Record, restore: Record) -> Change:
    """The change by which the VM gets the values of `record`, and the originals of `restore`."""
    set_values = {key: ours_of(entry) for key, entry in record.items()}
    values = {key: value for key, value in set_values.items() if value and not same(key, config.get(key), value)}
    taken_away = [key for key, value in set_values.items() if value is None and key in config]
    originals = undo(config, restore)
    return Change(
        {**originals.values, **values}, [*(key for key in originals.delete if key not in values), *taken_away]
    )


def undo(config: dict[str, str], record: Record, *, moved: bool = False) -> Change:
    """The change that puts the originals of `record` back. An option that was changed since stays as it is, and an
    address that is another device's by now isn't put back.

    :param moved: whether the VM is on another node than it was when the record was made.
    """
    values: dict[str, str] = {}
    delete: list[str] = []
    for key, entry in record.items():
        if is_ours(key, config.get(key), entry) and not _device_is_given_again(config, key, record):
            if entry.get("before") and not _original_is_elsewhere(key, entry, moved=moved):
                values[key] = str(entry["before"])
            elif key in config:
                delete.append(key)
    return Change(values, delete)


def _original_is_elsewhere(key: str, entry: Mapping[str, str | None], *, moved: bool) -> bool:
    """Whether the original of a hostpci option names an address where the card no longer is: the VM is on another node,
    or the card in another slot."""
    host = parse(key, entry.get("before") or "").get("host", "") if key.startswith("hostpci") else ""
    return bool(host) and (moved or not overlap(host, entry.get("slot") or ""))


def left_behind(record: Record) -> Record:
    """A record of a VM that is on another node now: without originals that name an address of the one that it left."""
    return {
        key: {**entry, "before": None} if _original_is_elsewhere(key, entry, moved=True) else entry
        for key, entry in record.items()
    }


def _device_is_given_again(config: Mapping[str, str], key: str, record: Record) -> bool:
    """Whether the user has given the VM the device of a hostpci option that homelab took away by another option since.
    With both, the VM wouldn't start."""
    entry = record[key]
    host = parse(key, entry.get("before") or "").get("host", "") if key.startswith("hostpci") else ""
    if not host or key in config:
        return False
    slot = entry.get("slot")
    mappings = {
        parse(option, value or "").get("mapping")
        for option, recorded_entry in record.items()
        if recorded_entry.get("slot") == slot
        for value in _values_of(recorded_entry)
    }
    for option, value in _hostpci_of(config).items():
        option_entry = record.get(option, {})
        if is_ours(option, value, option_entry) or same(option, value, option_entry.get("before")):
            continue
        properties = parse(option, value)
        if overlap(properties.get("host", ""), host) or ("mapping" in properties and properties["mapping"] in mappings):
            return True
    return False


def identity(config: dict[str, str]) -> str:
    """The text that tells a VM from a later one of the same id: its UUID's option, else the time of its creation."""
    return config.get("smbios1") or config.get("meta") or ""


def same_vm(first: str, second: str) -> bool:
    """Whether two identities are of the same VM. If both have a UUID, it alone counts: the user may change what stands
    beside it, such as a serial number."""
    matches = [re.search(r"\buuid=([0-9A-Fa-f-]+)", text) for text in (first, second)]
    uuids = [match[1].lower() for match in matches if match]
    return uuids[0] == uuids[1] if len(uuids) == 2 else first == second


def noted_of(config: dict[str, str], noted: dict[str, Any] | None) -> tuple[Record, Record]:
    """The `record` and `restore` of a VM's ledger entry (homelab/remote/ledger.py), as far as the VM still has the
    values that homelab has set; both are empty if the id is another VM's now.

    :param noted: the entry; None: there is none.
    """
    if noted is None or not same_vm(str(noted.get("identity", "")), identity(config)):
        return {}, {}
    parts = [
        {key: entry for key, entry in noted.get(part, {}).items() if is_ours(key, config.get(key), entry)}
        for part in ("record", "restore")
    ]
    return parts[0], parts[1]


def may_have_record(config: dict[str, str]) -> bool:
    """Whether a VM has an option that homelab may have set. The machine model doesn't count: most VMs have q35."""
    return (
        any(key.startswith("hostpci") for key in config) or config.get("balloon") == "0" or config.get("vga") == "none"
    )


def not_put_back(config: dict[str, str], record: Record, *, moved: bool = False) -> list[str]:
    """A line for each original that `undo` doesn't put back: the option was changed since, or its address is another
    device's by now.

    :param moved: whether the VM is on another node than it was when the record was made.
    """
    lines = [
        f"{key} was {entry['before']} before this program; that address is not this card's any more, and isn't put back"
        for key, entry in record.items()
        if is_ours(key, config.get(key), entry) and _original_is_elsewhere(key, entry, moved=moved)
    ]
    lines += [
        f"{key} was {entry['before']} before this program, and isn't put back: the VM has since been given that "
        f"device by another option"
        for key, entry in record.items()
        if is_ours(key, config.get(key), entry) and _device_is_given_again(config, key, record)
    ]
    return lines + [
        f"{key} is {config.get(key, 'not there')}, set by someone else since: it stays so (before this program it was "
        f"{entry['before']})"
        for key, entry in record.items()
        if entry.get("before")
        and not is_ours(key, config.get(key), entry)
        and not same(key, config.get(key), entry["before"])
    ]


def drift(config: dict[str, str], record: Record) -> list[str]:
    """A line for each option of a VM that differs from the record."""
    return [
        f"{key} is {config.get(key, 'not there')} instead of {ours_of(entry) or 'not there'}"
        for key, entry in record.items()
        if not is_ours(key, config.get(key), entry)
    ]


# -- refusals --------------------------------------------------------------------------------------------------------
def check(config: dict[str, str], wish: Wish, users: dict[str, list[CardUser]]) -> tuple[list[HomelabError], list[str]]:
    """Refusals and remarks, decided before a VM is stopped.

    :param users: card's name -> the VMs that have it, this one included.
    """
    name = f"VM {wish.vmid} ({config.get('name', wish.vm)})"
    errors = [*_state(config, name), *_model(config, wish, name)]
    remarks = _remarks(config, wish, name)
    for card in wish.cards:
        others = [user for user in users.get(card.gpu, []) if user.vmid != wish.vmid]
        errors += _in_use(name, card, others) + _onboot(config, wish, name, card, others)
        remarks += [
            f"{other}, which doesn't run with it now, has {card.gpu} as well: only one of them can run with it at a "
            "time"
            for other in others
            if not other.running
        ]
    return errors, remarks


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
    values = [_hostpci(key, card, config, {}) for key, card in _hostpci_keys(config, wish.cards, {}).items()]
    if wish.machine or "q35" in _machine(config) or not any(_on_pcie(value) for value in values):
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
    return is_true(parse("hostpci", value).get("pcie", ""))


def taken_over(
    config: dict[str, str], wish: Wish, record: Record, guests: Guests, node: str, *, certain: bool = True
) -> tuple[list[HomelabError], list[str]]:
    """Refusals and remarks about taking over the options by which the user gave the VM its cards.

    :param record: of an earlier change.
    :param guests: of the host, with its mappings.
    :param node: the host's name in Proxmox VE.
    :param certain: whether the record is complete. Of a VM that has come from another node, that node may have one; a
        mapping is the same card's on each node.
    """
    name = f"VM {wish.vmid} ({config.get('name', wish.vm)})"
    record = _current_record(config, wish.cards, record)
    options, errors, remarks = wanted(config, wish, record), list[HomelabError](), list[str]()
    for key, value in _hostpci_of(config).items():
        host = parse(key, value).get("host", "")
        cards = [card for card in wish.cards if overlap(host, card.slot)]
        if not host and certain and key not in record and _loses(value, options.get(key)):
            cards = [card for card in wish.cards if parse(key, value).get("mapping") == card.mapping]
        is_recorded = key in record and is_ours(key, value, record[key])
        if is_recorded or not cards or same(key, value, options.get(key) or None):
            continue
        beyond = [part for part in functions_of(host) if not any(_covers(card, part) for card in wish.cards)]
        unasked = [card for card in cards if not card.take_over]
        if unasked:
            errors.append(_not_asked(wish, name, unasked[0], key, value))
        elif beyond:
            errors.append(_more_than_the_card(config, wish, name, cards[0], key, beyond))
        else:
            remarks.append(f"{name}: {key}: {value} was set by hand: it is noted, and put back as it is on destroy")
    for key, value in _hostpci_of(config).items():
        mapping = parse(key, value).get("mapping")
        path = ";".join(guests.places_of(parse(key, value), node)) if mapping and key not in record else ""
        errors += [
            _mapped_otherwise(name, card, key, value)
            for card in wish.cards
            if mapping != card.mapping and overlap(path, card.slot)
        ]
    return errors, remarks


def _loses(line: str, wanted: str | None) -> bool:
    """Whether a hostpci option loses properties by becoming the wanted one; defaults don't count."""
    before, after = ({**_DEFAULTS, **parse("hostpci", text)} for text in (line, wanted or line))
    return any(after.get(key) != value for key, value in before.items() if _DEFAULTS.get(key) != value)


def _mapped_otherwise(name: str, card: VmCard, key: str, value: str) -> HomelabError:
    mapping = parse(key, value)["mapping"]
    return HomelabError(
        wanted=f"{card.gpu} given to {name} by the mapping {card.mapping}",
        found=f"{key}: {value}, set by hand: {mapping} is a mapping of the same card",
        why="with both, the VM would be given the card twice, and wouldn't start",
        next=f"set mapping: {mapping} for the host's gpus.{card.gpu}, which homelab init does: that mapping is used "
        "then, and stays",
    )


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
    rest = ";".join(part for part in host.split(";") if address(part) not in beyond)
    free = next((f"hostpci{number}" for number in range(SLOTS) if f"hostpci{number}" not in config), "hostpciN")
    functions = [part for part in beyond if slot_of(part) in map(slot_of, functions_of(card.slot))]
    split = (
        "give the rest an option of its own, while the VM is off: "
        f"`qm set {wish.vmid} --{key} '{rest}{comma}{options}' --{free} '{';'.join(beyond)},pcie=1'`"
    )
    name_functions = f"name those of its functions that the VM is to have in the host's gpus.{card.gpu}.functions"
    return HomelabError(
        wanted=f"{key} of {name} taken over for {card.gpu}",
        found=f"{key}: {line}, which gives the VM more than {card.gpu} ({card.slot}): {', '.join(beyond)}",
        why="the mapping stands for that card alone: the VM would lose the rest",
        next=name_functions if functions else split,
    )


def _in_use(name: str, card: VmCard, others: Iterable[CardUser]) -> list[HomelabError]:
    return [
        HomelabError(
            wanted=f"{card.gpu} ({card.name or card.slot}) free for {name}",
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
    remarks = []
    if config.get("bios", "seabios") != "ovmf":
        remarks.append(
            f"{name} starts by SeaBIOS: OVMF is recommended, as cards' firmware is made for UEFI and large BARs (a "
            "whole GPU's memory) "
            "are only placed by it. Changing it takes a bootable UEFI system inside"
        )
    if _balloons(config):
        remarks.append(
            f"{name}: balloon: {config['balloon']} becomes 0: a card pins all of the VM's memory; it is put back on "
            "destroy"
        )
    if "parent" in config:
        remarks.append(f"{name} has snapshots: with a card, none with RAM can be made or returned to while it runs")
    remarks.append(f"{name}: while it has a card it can't be migrated while it runs, nor suspended")
    return remarks
