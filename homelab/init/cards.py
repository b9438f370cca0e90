"""A host's cards, and who may get them: names, present users, the answer to "who gets it", the gates' refusals."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from homelab.cards import consoles
from homelab.errors import HomelabError, Mistake
from homelab.facts.classes import NVIDIA
from homelab.facts.guests import GuestConfig
from homelab.facts.host import HostFacts
from homelab.findings import JudgedGuest
from homelab.host import gates
from homelab.host.named import Named, meant
from homelab.init.ask import to_type
from homelab.properties import same
from homelab.settings import Gpu, Host
from homelab.vm.cards import VmCard, Wish, lines_of
from homelab.vm.plan import judge_vm, seen_of


@dataclass(frozen=True)
class Card:
    """A card. `place`: its slot, or a virtual function's address; `key`: its name in the settings; `find`: `match` and
    `address`, by which the settings find it; `name`: for people."""

    place: str
    id: str
    key: str
    name: str
    find: Mapping[str, str] = field(hash=False)

    @property
    def is_nvidia(self) -> bool:
        return self.id.startswith(f"{NVIDIA}:")

    @property
    def names(self) -> tuple[str, ...]:
        """What a person may call it."""
        return self.key, self.place, self.place.removeprefix("0000:"), self.id

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Use:
    """What becomes of a card. `use`: as in the settings, empty: nothing; `vms`, `containers`: ids; `more`: settings of
    the card that open a gate, such as allowConsole; `refused`: why that gate is closed without them; `notes`: for the
    guests' owner."""

    use: str = ""
    vms: tuple[int, ...] = ()
    containers: tuple[int, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)
    refused: HomelabError | None = field(default=None, compare=False)
    notes: Sequence[str] = field(default=(), compare=False)


def cards(facts: HostFacts, configured: Mapping[str, str]) -> list[Card]:
    """The host's graphics cards and virtual functions, by address.

    :param configured: place -> name, of those that the settings have.
    """
    shown = {
        device.slot: device for device in sorted(facts.display_devices, key=lambda device: device.address, reverse=True)
    }
    shown |= {device.address: device for device in facts.devices if device.is_display and device.physfn}
    found: list[Card] = []
    for place, device in sorted(shown.items()):
        taken = [*configured.values(), *(card.key for card in found)]
        key = configured.get(place) or key_of(facts.model(device), taken, "card")
        alone = sum(other.id == device.id for other in shown.values()) == 1
        find = {} if "." in place else {"match": device.id}
        found.append(
            Card(place, device.id, key, facts.card(place), find | ({} if alone and find else {"address": place}))
        )
    return found


# As people call them. A Matrox G200, or ASPEED's, is the screen of a server's management controller (BMC).
_SHORTER = (
    (r"^(rtx|gtx|rx|gt)-(?=[a-z]?[0-9])", r"\1"),
    (r"^matrox-electronics-systems-ltd-(mga-)?", "matrox-"),
    (r"^matrox-(?=g200)", "bmc-"),
    (r"^aspeed-(technology-inc-aspeed-)?graphics-family$", "bmc-aspeed"),
)


def key_of(name: str, taken: Collection[str], otherwise: str) -> str:
    """A free name for the settings: letters, digits and hyphens; `rtx5090` of `RTX 5090`."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    for pattern, instead in _SHORTER:
        words = re.sub(pattern, instead, words)
    base = words[:36].strip("-")
    base = base if re.match(r"[a-z].", base) else f"{otherwise}-{base}".strip("-")
    return next(key for key in (base, *(f"{base}-{number}" for number in range(2, 999))) if key not in taken)


def guest_key(number: int, facts: HostFacts, taken: Collection[str], otherwise: str) -> str:
    """A free name for a guest in the settings."""
    config = facts.guests.config(number)
    return key_of(config.name if config else "", taken, otherwise)


def guest(config: GuestConfig, facts: HostFacts) -> str:
    """`VM 103 (Sandbox), running`."""
    stopped = "not known whether it runs" if facts.guests.unlisted else "off"
    state = "running" if config.id in facts.guests.running else stopped
    return f"{'VM' if config.kind == 'vm' else 'container'} {config.id} ({config.name}), {state}"


def takers(facts: HostFacts) -> list[GuestConfig]:
    """The guests that can get a card, by id."""
    return sorted((config for config in facts.guests.configs if not config.is_template), key=lambda config: config.id)


def users(facts: HostFacts, card: Card) -> list[str]:
    """Who has the card by a configuration on the host, or runs a program on it."""
    return [
        *map(str, facts.users_of(card.place)),
        *(guest(config, facts) for config in facts.containers_with(card.place)),
        *map(str, facts.holders_of(device.address for device in facts.functions(card.place))),
    ]


def suggested(facts: HostFacts, card: Card, taken: Collection[int] = ()) -> str:
    """The preselected answer: the guests that have the card (of several VMs the one that runs with it); else the only
    guest that could get it; else nobody.

    :param taken: VMs that get another card.
    """
    if having := facts.users_of(card.place):
        return str(max(having, key=lambda user: (user.running, user.onboot)).vmid)
    if sharing := facts.containers_with(card.place):
        return ",".join(str(config.id) for config in sharing)
    functions = facts.functions(card.place)
    if not card.is_nvidia or "." in card.place or consoles.screens(facts, functions):
        return "nobody"
    kind = "lxc" if {device.address for device in functions} & set(facts.nvidia_minors) else "vm"
    able = [config.id for config in takers(facts) if config.kind == kind]
    return str(able[0]) if len(able) == 1 and able[0] not in taken else "nobody"


_WHOM = {"lxc": "containers", "shared": "a VM and containers in turn", "host": "the host itself"}
_HELP = """Numbers or names of guests, or a word; such as
    103: a VM
    901,950: containers, together
    103,901,950: in turn: the containers have it, and the VM while it runs
    host: programs on the host itself
    nobody: the card stays as it is"""


def parse_use(
    text: str, card: Card, facts: HostFacts, host: Host, own: Mapping[str, object], known: Iterable[Named] = ()
) -> Use:
    """The use that an answer means: guests by number or name, `host`, `nobody`.

    :param own: what the settings have of the card already.
    :param known: the host's guests by their names there.
    :raises Mistake: there is no such guest, or `up` would refuse it, whatever the person accepts; or a `?` asks for
        help.
    """
    words = text.lower().split()
    if words in (["nobody"], ["none"]):
        return Use()
    if words == ["?"]:
        raise Mistake(_HELP)
    able = takers(facts)
    guests = meant(text, [one for one in known if one.id in {config.id for config in able}], able)
    if not guests and words != ["host"]:
        there = "; ".join([*(guest(config, facts) for config in able), "host", "nobody"])
        raise Mistake(f"{text or 'nothing'} can't have {card.key}; there are: {there}")
    vms = tuple(one.id for one in guests if one.kind == "vm")
    containers = tuple(one.id for one in guests if one.kind == "lxc")
    if len(vms) > 1 and not containers:
        raise Mistake("One VM at a time can have a card: give one number, or a VM's with containers', in turn.")
    use = "shared" if vms and containers else "vm" if vms else "lxc" if containers else "host"
    if "." in card.place and use != "vm":
        raise Mistake(f"{card.key} is a virtual function: only a VM can have it.")
    # What `up` refuses, and settings of the card would allow.
    openers: dict[str, Any] = {
        "allowConsole": True,
        "allowContainers": [config.id for config in facts.containers_with(card.place)],
    }
    errors = _refused(facts, card, host, use, own)
    for size in range(3 if use == "vm" else 1):
        for keys in itertools.combinations(openers, size):
            more = {key: openers[key] for key in keys}
            if not (_refused(facts, card, host, use, {**own, **more}) if more else errors):
                return Use(use, vms, containers, more, next(iter(errors), None), _notes(vms, card, facts))
    is_able = vms and not _refused(facts, card, host, "lxc", own)
    raise refused(card, Use(use, vms), errors[0], "; containers, or the host itself, can have it" if is_able else "")


def _notes(vms: Iterable[int], card: Card, facts: HostFacts) -> list[str]:
    windows = [one for one in takers(facts) if one.id in vms and one.is_windows]
    return [line for vmid in vms for line in judged(vmid, card, facts).met] + [
        f"VM {one.id} has Windows, in which homelab installs nothing; its driver, its display and xVga: docs/cards.md"
        for one in windows
    ]


def refused(card: Card, use: Use, error: HomelabError, but: str = "") -> Mistake:
    """Why a card can't go there: a sentence that says it, then the reason and what to type.

    :param but: what is possible, as the sentence's end.
    """
    whom = f"VM {use.vms[0]}" if use.use == "vm" else _WHOM[use.use]
    lines = f"{card.key} can't go to {whom}: {error.found}{but}.", f"why:  {error.why}", f"next: {to_type(error.next)}"
    return Mistake("\n    ".join(lines))


def mapping_of(card: Card, vms: Iterable[int], facts: HostFacts) -> str:
    """The mapping by which a person has given one of these VMs the card, as a second one would give it twice; else the
    card's own.
    """
    given = VmCard("", "", facts.path_of(card.place)).given
    options = [option for vmid in vms for option in facts.options_of(given, vmid).values()]
    return next((option["mapping"] for option in options if "mapping" in option), card.key)


def in_vm(vmid: int, card: Card, mapping: str, facts: HostFacts) -> VmCard:
    """A card as its VM's settings give it: taken over where the VM has it by a line of a person's own."""
    plain = VmCard(card.key, mapping, facts.path_of(card.place))
    lines = lines_of(seen_of(facts, vmid).base, plain).items()
    return replace(plain, take_over=any(not same(*line, plain.in_place_of("")) for line in lines))


def judged(vmid: int, card: Card, facts: HostFacts) -> JudgedGuest:
    """A VM that gets a card, judged as by a preview."""
    mapping = mapping_of(card, [vmid], facts)
    return judge_vm(
        seen_of(facts, vmid), Wish(guest_key(vmid, facts, (), "vm"), vmid, [in_vm(vmid, card, mapping, facts)]), facts
    )


def _refused(facts: HostFacts, card: Card, host: Host, use: str, more: Mapping[str, Any]) -> list[HomelabError]:
    # Whether what the settings have of it fits another use, whoever reads them whole says.
    gpu = Gpu.model_validate({**card.find, **more, "use": "vm"}).model_copy(update={"use": use})
    alone = host.model_copy(update={"gpus": {card.key: gpu}, "take_over": host.take_over or use != "vm"})
    return gates.check(facts, alone)[1]
