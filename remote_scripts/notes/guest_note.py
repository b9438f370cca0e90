"""What this program has changed in a guest, and what was there before: /etc/pve/homelab/qemu-ID or lxc-ID, which pmxcfs
keeps on every node, so that it is where the guest is. Pure: both halves decide by it.

It is written before anything is changed. A key's original is kept once: while the guest has one of the values that
count as homelab's, the original is what was there before the first of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from remote_scripts.pve.guest_kinds import VM, Kind
from remote_scripts.pve.properties import functions_of, overlap, parse, same, slot_of
from remote_scripts.tools.errors import Failure

#: A guest's options by their keys; None: it hasn't, or isn't to have, that key. A container's lxc.* line, `KEY: VALUE`,
#: is a key of its own, whose value is nothing.
Options = Mapping[str, str | None]
N = TypeVar("N", bound="Note")
#: For how many seconds a guest may take its time to go off, where the settings don't say.
SHUTDOWN_SECONDS = 180


@dataclass(frozen=True, kw_only=True)
class Note:
    """What is noted of one guest."""

    identity: str = ""
    """Tells the guest from a later one of its id."""
    owner: str = ""
    """The resource whose guest it is, PROJECT/STACK/NAME: a `revert` for another one changes nothing."""
    originals: dict[str, str | None] = field(default_factory=dict)
    """Byte for byte what was there before."""
    values: dict[str, tuple[str | None, ...]] = field(default_factory=dict)
    """The values that count as homelab's: what the key is to be, and until it is in force what it was."""
    devices: dict[str, str] = field(default_factory=dict)
    """vendor:device of each address that an original names."""
    before: dict[str, str | None] = field(default_factory=dict)
    """Of the keys that are being changed what the guest had when all was settled: what it has back where that fails."""
    shutdown: int = SHUTDOWN_SECONDS
    """For how many seconds the guest may take its time to go off, where it loses a card to another VM."""
    otherwise: Literal["fail", "stop"] = "fail"
    """What happens to one that is still on then."""

    def __bool__(self) -> bool:
        return bool(self.values)

    @property
    def is_under_way(self) -> bool:
        """Whether a change was begun, and hasn't ended."""
        return bool(self.before)

    def has_set(self, key: str, value: str | None) -> bool:
        """Whether a value is one that this program has set."""
        return any(same(key, value, own) for own in self.values.get(key, ()))

    def is_others(self, key: str, value: str | None) -> bool:
        """Whether a value that waits is somebody else's. A made VM's password is this program's, and noted nowhere."""
        return key != "cipassword" and not self.has_set(key, value)

    def has_one_of(self, cards: Iterable[str], stack: str, config: Iterable[tuple[str, str]] = ()) -> bool:
        """Whether the VM is a stack's, and has one of these cards from it, or is about to get or lose it.

        :param cards: mappings and addresses.
        :param stack: PROJECT/STACK.
        :param config: lines of its owner's by which it may have the card, too.
        """
        lines = [*config, *((key, value) for key, values in self.values.items() for value in values)]
        return self.owner.rpartition("/")[0] == stack and any(gives(*line, cards) for line in lines)

    def loses_one_of(
        self, cards: Collection[str], stack: str, config: Mapping[str, str], devices: Mapping[str, str]
    ) -> bool:
        """Whether it would lose one of these cards for good: one whose owner had given it the card has that again
        without this program. Arguments as of `has_one_of` and `base`.
        """
        keeps = any(gives(*line, cards) for line in self.base(config, devices).items())
        return self.has_one_of(cards, stack) and not keeps

    @property
    def wanted(self) -> dict[str, str | None]:
        """What the guest has, or is about to get, from this program."""
        return {key: values[0] for key, values in self.values.items()}

    def base(self, config: Mapping[str, str], devices: Mapping[str, str]) -> dict[str, str]:
        """The guest as it would be without this program: each key that still is homelab's has its original again. An
        original that names an address isn't given back if another device is at that address by now, or if the owner's
        own lines give that function, or have replaced one for that slot.

        :param config: as it is, or will be at its next start.
        :param devices: vendor:device by address, of the node that the guest is on.
        """
        base = {key: value for key, value in config.items() if not self.has_set(key, value)}
        anew = {key: value for key, value in base.items() if not same(key, value, self.originals.get(key))}
        given = [_path(*line) for line in anew.items()]
        given += [slot_of(one) for key in anew for one in _functions(key, self.originals.get(key))]
        for key, value in self.originals.items():
            is_there = all(self.devices.get(one) == devices.get(one, "") for one in _functions(key, value))
            is_free = not overlap(";".join(given), _path(key, value))
            if value is not None and self.has_set(key, config.get(key)) and is_there and is_free:
                base[key] = value
        return base

    def of_change(
        self: N,
        config: Mapping[str, str],
        devices: Mapping[str, str],
        options: Options,
        change: Options,
        owner: str,
    ) -> N:
        """The note from before a change to its end. Until then both values count, also of what is given back. A key
        that its owner has set since, and that isn't asked for, is noted no more. What he has set becomes its original,
        but for a line of this program's that he has edited.

        :param config: the guest's, with what waits for its next start.
        :param options: all that the guest is to have from homelab.
        :param change: what is set for that.
        """
        base = self.base(config, devices)
        own = [key for key in self.values if config.get(key) is None or self.has_set(key, config[key])]
        keys = [*options, *(key for key in own if key not in options)]
        kept = {*own, *(key for key in self.values if self._has_mapping(key, config.get(key)))}
        originals = {key: self.originals[key] if key in kept else config.get(key) for key in keys}
        before = {key: value for key, value in self.before.items() if self.has_set(key, config.get(key))}
        found = {one: devices.get(one, "") for key in keys for one in _functions(key, originals[key])}
        wanted = {key: options[key] if key in options else base.get(key) for key in keys}
        return replace(
            self,
            identity=identity(config),
            owner=owner,
            originals=originals,
            values={key: tuple(dict.fromkeys([wanted[key], *self.values.get(key, ())])) for key in keys},
            devices=found | self.devices,
            before={**{key: config.get(key) for key in change}, **before},
        )

    def _has_mapping(self, key: str, value: str | None) -> bool:
        """Whether an option names a mapping that this program has set there, whatever else somebody has edited."""
        named, *own = (parse(key, one or "").get("mapping") for one in (value, *self.values[key]))
        return named is not None and named in own

    def after_change(self: N, options: Options) -> N:
        """The note once all of it is in force. Proxmox VE stores each of these values as it was sent."""
        values: dict[str, tuple[str | None, ...]] = {key: (value,) for key, value in options.items()}
        originals = {key: self.originals[key] for key in values}
        devices = {one: self.devices.get(one, "") for key in originals for one in _functions(key, originals[key])}
        return replace(self.settled(), values=values, originals=originals, devices=devices)

    def settled(self: N) -> N:
        """The note where nothing is under way."""
        return replace(self, before={})


def refused_to_stack(note: Note, kind: Kind, guest: int, stack: str) -> Failure | None:
    """The refusal of a guest that another stack has given its cards: each of the two would take out what the other one
    gives. None: it is free, or this stack's.

    :param stack: PROJECT/STACK.
    """
    others, _, name = note.owner.rpartition("/")
    if others in ("", stack):
        return None
    return Failure(
        f"{kind.label} {guest} given its cards",
        f"it has its cards from the stack {others}, as {'vms' if kind is VM else 'containers'}.{name}",
        f"a {kind.label} is one stack's; nothing was changed",
        f"take it out of the settings of one of the two, and run `pulumi up` there; if {others} is gone or renamed, "
        f'correct "owner" in /etc/pve/homelab/{kind.name}-{guest}',
    )


def gives(key: str, value: str | None, cards: Iterable[str]) -> bool:
    """Whether an option gives one of these cards.

    :param value: None: the VM isn't to have the key.
    :param cards: mappings and addresses.
    """
    properties = parse(key, value or "") if key.startswith("hostpci") else {}
    return any(card == properties.get("mapping") or overlap(properties.get("host", ""), card) for card in cards)


def identity(config: Mapping[str, str]) -> str:
    """What tells a guest from a later one of the same id. A VM: its UUID, which its owner doesn't change, or else the
    time when it was made; empty: it is older than both, and a later one has them. A container: the addresses of its
    network cards, and its disk.
    """
    if rootfs := config.get("rootfs"):
        nets = " ".join(value for key, value in config.items() if key.startswith("net"))
        found = re.findall(r"\bhwaddr=([0-9A-Fa-f:]+)", nets)
        return " ".join([*sorted(map(str.upper, found)), rootfs.partition(",")[0]])
    match = re.search(r"\buuid=([0-9A-Fa-f-]+)", config.get("smbios1", ""))
    return match[1].lower() if match else config.get("meta", "")


def is_another(note: Note, config: Mapping[str, str]) -> bool:
    """Whether a guest isn't the one of a note. A container may have other network cards by now, or another disk. By its
    disk alone it is told where it has something from this program: a later one of the id has a disk of the same name.
    Where only its identity is noted (owed.Debt), a container without a network card is the one it was: its disk may
    have moved, and Proxmox VE's log tells of a later one.
    """
    now, disk = identity(config), config.get("rootfs", "").partition(",")[0]
    if disk and not note and " " not in note.identity + now:  # which the disk's name would follow
        return False
    shared = {*note.identity.split()} & {*now.split()}
    has_own = any(note.has_set(key, value) for key, value in config.items())
    return note.identity != now and not (shared if has_own else shared - {disk})


def _path(key: str, value: str | None) -> str:
    """The slots and functions that a hostpci option names, as it names them."""
    return parse(key, value or "").get("host", "") if key.startswith("hostpci") else ""


def _functions(key: str, value: str | None) -> list[str]:
    """The addresses that a hostpci option names; a slot's first function stands for it."""
    return [part if "." in part else f"{part}.0" for part in functions_of(_path(key, value))]
