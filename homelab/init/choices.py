"""The user's choices: the use of each card, NVIDIA's software; and the settings that follow from them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from homelab.errors import HomelabError
from homelab.host import consoles, gates
from homelab.host.facts import HostFacts, noted_in
from homelab.init.cards import Card, containers_with, key_of
from homelab.properties import same
from homelab.settings import Host, Settings, stack_file
from homelab.vm.config import VmCard, noted_of, owners_lines

Kind = Literal["vm", "new-vm", "shared", "lxc", "host", "none"]


@dataclass(frozen=True)
class Guest:
    """A VM or container of the host. `kind`: vm or lxc; `template`: it never runs, and gets no card."""

    id: int
    kind: str
    name: str
    running: bool
    template: bool = False

    def __str__(self) -> str:
        what = "VM" if self.kind == "vm" else "container"
        state = "a template" if self.template else "running" if self.running else "off"
        return f"{what} {self.id} ({self.name}), {state}"


def guests(facts: HostFacts) -> list[Guest]:
    """The host's guests, by id."""
    name_keys = {"vm": ("name", "VM"), "lxc": ("hostname", "CT")}
    listed = []
    for config in sorted(facts.guests.configs, key=lambda config: config.id):
        key, otherwise = name_keys[config.kind]
        name = config.values.get(key) or f"{otherwise}{config.id}"
        listed.append(Guest(config.id, config.kind, name, config.id in facts.guests.running, config.is_template))
    return listed


def takers(facts: HostFacts) -> list[Guest]:
    """The host's guests that can get a card, by id."""
    return [guest for guest in guests(facts) if not guest.template]


def free_id(facts: HostFacts) -> int:
    """The lowest id that no guest of the cluster has."""
    taken = {config.id for config in facts.guests.configs}
    taken |= {int(number) for number in re.findall(r"/(\d+)\.conf", facts.cluster.places)}
    return next(number for number in range(100, 1_000_000_000) if number not in taken)


@dataclass(frozen=True)
class Use:
    """The use of a card. `guests`: the id of the VM, an existing or a new one; the ids of the containers; or, of a card
    that they have in turn, those of both."""

    kind: Kind
    guests: tuple[int, ...] = ()

    @property
    def setting(self) -> str:
        """`use` in the settings."""
        return "vm" if self.kind == "new-vm" else self.kind

    def of_kind(self, kind: str, facts: HostFacts) -> tuple[int, ...]:
        """The guests that get the card, of one kind.

        :param kind: vm or lxc.
        """
        if self.kind == "shared":
            return tuple(guest.id for guest in guests(facts) if guest.kind == kind and guest.id in self.guests)
        return self.guests if self.kind.removeprefix("new-") == kind else ()

    def __str__(self) -> str:
        ids = ",".join(map(str, self.guests))
        return f"{self.kind}:{ids}" if ids else self.kind


# Keys of a host that aren't keys of the whole configuration, too.
_OF_A_HOST = {str(field.alias) for field in Host.model_fields.values()} - {
    str(field.alias) for field in Settings.model_fields.values()
}
_FORMS = "vm:ID, new-vm, new-vm:ID, lxc:ID,ID…, shared:VM,ID,ID…, host, none"


def example(cards: Sequence[Card], facts: HostFacts) -> str:
    """A value for `--card` that this host accepts: one of its cards, NVIDIA's first, and an existing guest."""
    cards = sorted(cards, key=lambda card: not card.is_nvidia)
    return f"{cards[0].key if cards else 'CARD'}={example_use(facts)}"


def example_use(facts: HostFacts) -> str:
    """A use that this host allows: its first VM, else its first container, else a new VM."""
    existing = sorted(takers(facts), key=lambda guest: guest.kind != "vm")
    return f"{existing[0].kind}:{existing[0].id}" if existing else "new-vm"


def parse_card(text: str, cards: Sequence[Card], facts: HostFacts) -> tuple[Card, Use]:
    """A card and its use from a text such as `rtx5090=vm:103`; the card is named by its key, its slot or its id.

    :raises HomelabError: there is no such card, or no such use.
    """
    which, _, use = text.partition("=")
    name = which.strip().lower()
    matching = [card for card in cards if name in (card.key, card.place, card.place.removeprefix("0000:"), card.id)]
    if len(matching) != 1:
        there_are = ", ".join(f"{card.key} ({card})" for card in cards) or "no card"
        raise HomelabError(
            wanted=f"one card for --card {text}",
            found=f"{len(matching) or 'none'} of that name; the host has {there_are}",
            why="a card is given away by its name, its slot or its id",
            next=f"write it as {example(cards, facts)}",
        )
    return matching[0], parse_use(use, facts)


def parse_use(text: str, facts: HostFacts) -> Use:
    """The use that a text such as `vm:103` names.

    :raises HomelabError: it is no use, or names a guest that doesn't exist.
    """
    match = re.fullmatch(
        r"(vm):(\d{3,9})|(new-vm)(?::(\d{3,9}))?|(lxc):(\d{3,9}(?:,\d{3,9})*)|(host|none)|(shared):([\d,]+)",
        text.strip(),
    )
    if match is None:
        raise HomelabError(
            wanted=f"what a card is for: {_FORMS}",
            found=text.strip() or "nothing",
            why="a card goes to one VM, to containers, or stays with the host",
            next=f"write it as --card CARD={example_use(facts)}",
        )
    by_id = {guest.id: guest for guest in guests(facts)}
    if match[3]:
        number = int(match[4] or free_id(facts))
        if number in by_id:
            raise _wrong_guest(number, "an id that is free for a new VM", str(by_id[number]))
        return Use("new-vm", (number,))
    if match[7]:
        return Use("host" if match[7] == "host" else "none")
    if match[8]:
        return _shared(text.strip(), match[9], {guest.id: guest for guest in takers(facts)})
    kind: Literal["vm", "lxc"] = "vm" if match[1] else "lxc"
    ids = tuple(dict.fromkeys(int(number) for number in (match[2] or match[6]).split(",")))
    for number in ids:
        guest = by_id.get(number)
        if guest is None or guest.kind != kind or guest.template:
            what = "VM" if kind == "vm" else "container"
            existing = "; ".join(str(other) for other in by_id.values() if other.kind == kind) or "none"
            raise _wrong_guest(number, f"the {what} {number}", str(guest) if guest else f"there are: {existing}")
    return Use(kind, ids)


def _shared(text: str, ids: str, by_id: Mapping[int, Guest]) -> Use:
    """:raises HomelabError: there isn't a VM and a container among them, or another guest."""
    numbers = tuple(dict.fromkeys(int(number) for number in ids.split(",") if number))
    if {by_id[number].kind if number in by_id else "" for number in numbers} != {"vm", "lxc"}:
        raise HomelabError(
            wanted="a VM and at least one container that have the card in turn",
            found=f"{text}; there are: {'; '.join(map(str, by_id.values())) or 'none'}",
            why="the containers have it while no VM that may take it runs",
            next="write it as --card CARD=shared:103,901",
        )
    return Use("shared", numbers)


def _wrong_guest(number: int, wanted: str, found: str) -> HomelabError:
    return HomelabError(
        wanted=wanted,
        found=found,
        why=f"a card can't be given to {number}",
        next="take another id",
    )


def suggested(facts: HostFacts, card: Card, node: str) -> Use:
    """The preselected use: the guests that have the card, of several VMs the one that runs with it, or that starts with
    the host; else the only one that can be meant; else none."""
    users = facts.users_of(card.place, node)
    if users:
        return Use("vm", (max(users, key=lambda user: (user.running, user.onboot)).vmid,))
    if using := containers_with(facts, card):
        return Use("lxc", tuple(using))
    addresses = {device.address for device in facts.functions(card.place)}
    if not card.is_nvidia or card.is_virtual or consoles.screens(facts, facts.functions(card.place)):
        return Use("none")
    kind = "lxc" if addresses & set(facts.nvidia_minors) else "vm"
    candidates = [guest.id for guest in takers(facts) if guest.kind == kind]
    return Use("lxc" if kind == "lxc" else "vm", (candidates[0],)) if len(candidates) == 1 else Use("none")


def configured_use(host: Host, gpu: str, vms: Mapping[str, Any], containers: Mapping[str, Any]) -> Use:
    """The use that the existing settings give a card."""
    holders = [vm.vmid for vm in vms.values() if gpu in vm.cards]
    sharing = tuple(container.ctid for container in containers.values() if gpu in container.cards)
    if host.gpus[gpu].use == "shared" and holders and sharing:
        return Use("shared", (*holders, *sharing))
    if holders:
        return Use("vm", (holders[0],))
    if sharing:
        return Use("lxc", sharing)
    return Use("host") if host.gpus[gpu].use != "vm" else Use("none")


def configured_cards(facts: HostFacts, host: Host) -> dict[str, str]:
    """Slot -> the card's name in the existing settings."""
    return {slot: name for name, slot in gates.resolve(facts, host.gpus)[0].items()}


@dataclass(frozen=True)
class Stack:
    """NVIDIA's software on a system. None, or empty: not wanted."""

    driver: str | None = None
    cuda: str | None = None
    toolkit: str | None = None

    @property
    def settings(self) -> dict[str, str]:
        """The keys of `nvidia:`."""
        pairs = {"driver": self.driver, "cuda": self.cuda, "containerToolkit": self.toolkit}
        return {key: value for key, value in pairs.items() if value}


@dataclass(frozen=True)
class ChosenVm:
    """A VM that is going to be created. `size`: of its disk, GiB; `memory`: MiB; `image`, `iso`: the volume that it
    starts from, both empty: an empty disk; `into`: the storage to which the known image of the name `image` is
    downloaded; `cloud`: its `cloudInit`.
    """

    name: str
    storage: str
    size: int = 64
    memory: int = 16384
    cores: int = 8
    image: str = ""
    iso: str = ""
    into: str = ""
    cloud: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Choices:
    """All choices. `uses`: slot -> use of the card; `host_stack`: None: the host's driver stays as it is;
    `guest_stack`: for running containers that get cards, None: nothing is installed in them; `over`: whether it
    replaces the one in a container's settings; `vm_stacks`: a VM's id -> its `address`, `ssh` and `nvidia`; `more`:
    further settings, by key of the file's `config:`.
    """

    uses: dict[str, Use] = field(default_factory=dict)
    host_stack: Stack | None = None
    guest_stack: Stack | None = None
    over: bool = False
    new_vm: ChosenVm | None = None
    vm_stacks: dict[int, dict[str, Any]] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)


def parse_setting(text: str, host: str) -> dict[str, Any]:
    """`vms.sandbox.machine=q35` as nested mappings below `homelab:`; the value as YAML has it.

    :param host: the host for a path without `hosts.NAME`, as in refusals: `gpus.rtx5090.allowConsole`.
    :raises HomelabError: it isn't of that form.
    """
    path, equals, value = text.partition("=")
    parts = path.removeprefix("homelab:").split(".")
    if parts[0] in _OF_A_HOST:
        parts = ["hosts", host, *parts]
    if not equals or not all(parts):
        raise HomelabError(
            wanted="--set PATH=VALUE, such as vms.sandbox.machine=q35",
            found=text,
            why="PATH says which setting gets VALUE",
            next="look up the setting's path in docs/settings.md",
        )
    try:
        setting: Any = stack_file.parsed(value)
    except yaml.YAMLError:
        setting = value
    for part in reversed(parts[1:]):
        setting = {part: setting}
    return {f"homelab:{parts[0]}": setting}


def combined(values: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The values of both mappings; of `more` where both have one."""
    result = dict(values)
    for key, value in more.items():
        before = result.get(key)
        result[key] = combined(before, value) if isinstance(before, dict) and isinstance(value, Mapping) else value
    return result


def settings_of(
    choices: Choices,
    host_name: str,
    access: Mapping[str, Any],
    facts: HostFacts,
    cards: Sequence[Card],
    existing: Mapping[str, Any],
) -> dict[str, Any]:
    """The settings that follow from the choices, by key of the file's `config:`, to be merged into the existing ones.

    :param access: of the host: address, ssh, node, cluster.
    :param cards: with the keys that they have in the settings.
    :param existing: the file's values under `homelab:`, by key without that.
    """
    old_host = _mapping(_mapping(existing, "hosts"), host_name)
    by_place = {card.place: card for card in cards}
    given = {by_place[place]: use for place, use in choices.uses.items() if use.kind != "none"}
    host = {**access, **_of_host(choices, given, old_host, facts)}
    gpus = combined(dict(_mapping(old_host, "gpus")), host.get("gpus", {}))
    names = {guest.id: guest.name for guest in guests(facts)}
    taken = [*_mapping(existing, "vms"), *_mapping(existing, "containers")]
    values: dict[str, Any] = {"homelab:hosts": {host_name: host}}
    for kind, section, id_key, otherwise in (("vm", "vms", "vmid", "vm"), ("lxc", "containers", "ctid", "ct")):
        entries = values.setdefault(f"homelab:{section}", {})
        wanted: dict[int, list[Any]] = {}
        for card, use in given.items():
            for number in use.of_kind(kind, facts):
                wanted.setdefault(number, []).append(
                    _use_in_vm(number, card, gpus, facts) if kind == "vm" else card.key
                )
        for name, entry in _mapping(existing, section).items():
            if isinstance(entry, Mapping) and entry.get("host") == host_name:
                number = int(entry.get(id_key, 0))
                new = wanted.pop(number, [])
                changed = _cards_of_guest(entry, new, [card.key for card in given])
                changed |= _software(choices, kind, number, entry, facts) if new else {}
                entries.update({name: changed} if changed else {})
        for number, new in wanted.items():
            new_vm = choices.new_vm if number not in names else None
            key = key_of(new_vm.name if new_vm else names.get(number, ""), taken, f"{otherwise}{number}")
            taken.append(key)
            entries[key] = {"host": host_name, id_key: number, "gpus": new}
            entries[key] |= _software(choices, kind, number, {}, facts)
            if new_vm:
                image, download = _download(new_vm, _mapping(old_host, "downloads"))
                host |= {"downloads": download} if download else {}
                entries[key]["create"] = _creation(new_vm, image)
    return combined(values, choices.more)


def _of_host(
    choices: Choices, given: Mapping[Card, Use], old_host: Mapping[str, Any], facts: HostFacts
) -> dict[str, Any]:
    """What the host's settings get: its cards, `takeOver`, `nvidia`."""
    host: dict[str, Any] = {}
    old_gpus = _mapping(old_host, "gpus")
    for card, use in given.items():
        gpu = {} if card.key in old_gpus else card.settings
        gpu |= {} if _mapping(old_gpus, card.key).get("mapping") else _mapping_by_hand(card, use, facts)
        host.setdefault("gpus", {})[card.key] = gpu | {"use": use.setting}
    staying = [card for card, use in given.items() if use.kind in ("shared", "lxc", "host")]
    named = [device for card in staying for device in facts.functions(card.place)]
    # Also by what had no effect so far: the next start may be the first with it.
    if any(facts.kept_by_hand(device) or facts.named_at_next_boot(device) for device in named):
        host["takeOver"] = True
    if choices.host_stack is not None and choices.host_stack.settings:
        host["nvidia"] = choices.host_stack.settings
    return host


def _software(
    choices: Choices, kind: str, number: int, entry: Mapping[str, Any], facts: HostFacts
) -> Mapping[str, Any]:
    """What a guest with a new card gets inside.

    :param entry: its settings so far.
    """
    if kind == "vm":
        return choices.vm_stacks.get(number, {})
    if choices.guest_stack is None or number not in facts.guests.running:
        return {}
    return {"nvidia": choices.guest_stack.settings} if choices.over or entry.get("nvidia") is None else {}


def _mapping(of: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = of.get(key)
    return value if isinstance(value, Mapping) else {}


def _mapping_by_hand(card: Card, use: Use, facts: HostFacts) -> dict[str, str]:
    """The mapping by which the user has given a VM the card, since a second mapping would give it twice."""
    node = facts.cluster.node
    options = [
        option for vmid in use.of_kind("vm", facts) for option in facts.options_of(card.place, vmid, node).values()
    ]
    mapping = next((option["mapping"] for option in options if "mapping" in option), card.key)
    return {"mapping": mapping} if mapping != card.key else {}


def _use_in_vm(vmid: int, card: Card, gpus: Mapping[str, Any], facts: HostFacts) -> Any:
    """A card in the `gpus` of a VM: its name; with takeOver where the user has given the VM the card by options of
    their own.

    :param gpus: the host's, by name.
    """
    config = facts.guests.config(vmid)
    values = config.values if config else {}
    record, _ = noted_of(values, noted_in(facts.ledger, f"vm/{vmid}"))
    in_vm = VmCard(card.key, _mapping(gpus, card.key).get("mapping") or card.key, facts.path_of(card.place))
    by_hand = any(not same(*line, in_vm.hostpci) for line in owners_lines(values, in_vm, record).items())
    return {"gpu": card.key, "takeOver": True} if by_hand else card.key


def _cards_of_guest(entry: Mapping[str, Any], new: list[Any], chosen: list[str]) -> dict[str, Any]:
    """The `gpus` of a guest in the settings after the choices; empty: they don't change.

    :param chosen: the cards that someone gets.
    """
    if entry.get("gpuAssignment") is not None:
        return {}
    old = entry.get("gpus") or []
    old_names, new_names = _names_of(old), _names_of(new)
    taken_over = [use["gpu"] for use in new if isinstance(use, Mapping)]
    stay = [
        {**(use if isinstance(use, Mapping) else {"gpu": name}), "takeOver": True} if name in taken_over else use
        for use, name in zip(old, old_names, strict=True)
        if name not in chosen or name in new_names
    ]
    gpus = [*stay, *(use for use, name in zip(new, new_names, strict=True) if name not in old_names)]
    return {"gpus": gpus} if gpus != old else {}


def _names_of(uses: Iterable[Any]) -> list[Any]:
    return [use.get("gpu") if isinstance(use, Mapping) else use for use in uses]


def _download(new: ChosenVm, old: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A new VM's image, a volume or the name of a download; and the download's settings, empty where the host has them
    already.
    """
    if not new.into:
        return new.image, {}
    download = {"image": new.image, **({} if new.into == "local" else {"storage": new.into})}
    existing = [name for name, entry in old.items() if isinstance(entry, Mapping) and download.items() <= entry.items()]
    if existing:
        return existing[0], {}
    name = key_of(new.image.replace(".", ""), list(old), "image")
    return name, {name: download}


def _creation(new: ChosenVm, image: str) -> dict[str, Any]:
    return {
        "name": new.name,
        **({"image": image} if image else {}),
        **({"isos": [new.iso]} if new.iso else {}),
        "disk": {"storage": new.storage, "size": new.size},
        "memory": new.memory,
        "cores": new.cores,
        **({"cloudInit": dict(new.cloud)} if new.cloud else {}),
    }
