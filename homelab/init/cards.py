"""A host's cards, and who has them: names, present users, the preselected answer to "who gets it"."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from homelab.cards import consoles
from homelab.errors import HomelabError
from homelab.facts.classes import NVIDIA
from homelab.facts.guests import GuestConfig
from homelab.facts.host import HostFacts
from homelab.init.new import New
from homelab.properties import same
from homelab.vm.cards import VmCard, lines_of
from homelab.vm.plan import seen_of


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
    the card that open a gate, such as allowConsole; `new`: the guest, where it is to be made; `refused`: why that gate
    is closed without them; `notes`: for the guests' owner."""

    use: str = ""
    vms: tuple[int, ...] = ()
    containers: tuple[int, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)
    new: New | None = None
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


#: The answer for a card that is made ready for VMs, of which none gets it yet.
READY = "vms"
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


def guest_key(number: int, facts: HostFacts, taken: Collection[str], otherwise: str, new: New | None = None) -> str:
    """A free name for a guest in the settings.

    :param new: it, where it is to be made.
    """
    config = new or facts.guests.config(number)
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
    guest that could get it, or where there is no guest, none yet; else nobody.

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
    if kind == "vm" and not takers(facts):
        return READY
    return str(able[0]) if len(able) == 1 and able[0] not in taken else "nobody"


def mapping_of(card: Card, vms: Iterable[int], facts: HostFacts) -> str:
    """The mapping by which a person has given one of these VMs the card, as a second one would give it twice; else the
    card's own.
    """
    given = VmCard("", "", facts.path_of(card.place)).given
    options = [option for vmid in vms for option in facts.options_of(given, vmid).values()]
    return next((option["mapping"] for option in options if "mapping" in option), card.key)


def is_taken_over(vmid: int, card: Card, mapping: str, facts: HostFacts) -> bool:
    """Whether a VM has the card by a line of a person's own, which its option is to take the place of."""
    own = VmCard(card.key, mapping, facts.path_of(card.place))
    lines = lines_of(seen_of(facts, vmid).base, own).items()
    return any(not same(*line, own.in_place_of("")) for line in lines)
