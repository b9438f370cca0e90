"""A host's cards, and who may get them: names, present users, the answer to "who gets it", the gates' refusals."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from homelab.errors import HomelabError
from homelab.findings import JudgedGuest
from homelab.host import consoles, gates
from homelab.host.classes import NVIDIA
from homelab.host.facts import GuestConfig, HostFacts
from homelab.init.ask import Mistake
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
    the card that open a gate, such as allowConsole."""

    use: str = ""
    vms: tuple[int, ...] = ()
    containers: tuple[int, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)


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


def guest(config: GuestConfig, facts: HostFacts) -> str:
    """`VM 103 (Sandbox), running`."""
    state = "running" if config.id in facts.guests.running else "off"
    return f"{'VM' if config.kind == 'vm' else 'container'} {config.id} ({name_of(config)}), {state}"


def name_of(config: GuestConfig | None) -> str:
    """The guest's name in Proxmox VE."""
    return config.values.get("name" if config.kind == "vm" else "hostname", "") if config else ""


def takers(facts: HostFacts) -> list[GuestConfig]:
    """The guests that can get a card, by id."""
    return sorted((config for config in facts.guests.configs if not config.is_template), key=lambda config: config.id)


def users(facts: HostFacts, card: Card, node: str) -> list[str]:
    """Who has the card by a configuration on the host, or runs a program on it."""
    vms = [str(user) for user in facts.users_of(card.place, node)]
    return [
        *vms,
        *(guest(config, facts) for config in facts.containers_with(card.place)),
        *map(str, facts.holders_of(device.address for device in facts.functions(card.place))),
    ]


def suggested(facts: HostFacts, card: Card, node: str) -> str:
    """The answer that is preselected: those who have the card, of several VMs the one that runs with it; else the one
    guest that can be meant; else nobody."""
    if having := facts.users_of(card.place, node):
        return str(max(having, key=lambda user: (user.running, user.onboot)).vmid)
    if sharing := facts.containers_with(card.place):
        return ",".join(str(config.id) for config in sharing)
    functions = facts.functions(card.place)
    if not card.is_nvidia or "." in card.place or consoles.screens(facts, functions):
        return "nobody"
    kind = "lxc" if {device.address for device in functions} & set(facts.nvidia_minors) else "vm"
    meant = [str(config.id) for config in takers(facts) if config.kind == kind]
    return meant[0] if len(meant) == 1 else "nobody"


def parse_use(text: str, card: Card, facts: HostFacts, host: Host) -> Use:
    """The use that an answer means: ids of guests, `host`, `nobody`.

    :raises Mistake: there is no such guest, or `up` would refuse it, whatever the person accepts.
    """
    words = text.replace(",", " ").split()
    if words in (["nobody"], ["none"]):
        return Use()
    kinds = {str(config.id): config.kind for config in takers(facts)}
    if words != ["host"] and (not words or not set(words) <= set(kinds)):
        known = "; ".join([*(guest(config, facts) for config in takers(facts)), "host", "nobody"])
        raise Mistake(f"{text or 'nothing'} can't have {card.key}; there are: {known}")
    vms = tuple(int(word) for word in words if kinds.get(word) == "vm")
    containers = tuple(int(word) for word in words if kinds.get(word) == "lxc")
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
    for size in range(3 if vms else 1):
        for keys in itertools.combinations(openers, size):
            more = {key: openers[key] for key in keys}
            if not _refused(facts, card, host, use, more):
                return Use(use, vms, containers, more)
    error = _refused(facts, card, host, use, {})[0]
    raise Mistake(f"{error.found}; {error.next}")


def mapping_of(card: Card, vms: Iterable[int], facts: HostFacts) -> str:
    """The mapping by which a person has given one of these VMs the card, as a second one would give it twice; else the
    card's own.
    """
    given = VmCard("", "", facts.path_of(card.place)).given
    options = [option for vmid in vms for option in facts.options_of(given, vmid, facts.cluster.node).values()]
    return next((option["mapping"] for option in options if "mapping" in option), card.key)


def in_vm(vmid: int, card: Card, mapping: str, facts: HostFacts) -> VmCard:
    """A card as its VM's settings give it: taken over where the VM has it by a line of a person's own."""
    plain = VmCard(card.key, mapping, facts.path_of(card.place), name=card.name)
    lines = lines_of(seen_of(facts, vmid).base, plain).items()
    return replace(plain, take_over=any(not same(*line, plain.in_place_of("")) for line in lines))


def judged(vmid: int, card: Card, facts: HostFacts) -> JudgedGuest:
    """A VM that gets a card, judged as by a preview."""
    name, mapping = key_of(name_of(facts.guests.config(vmid)), (), "vm"), mapping_of(card, [vmid], facts)
    return judge_vm(seen_of(facts, vmid), Wish(name, vmid, [in_vm(vmid, card, mapping, facts)]), facts)


def refusal(facts: HostFacts, card: Card, host: Host, use: Use) -> HomelabError | None:
    """Why `up` would refuse this without `use.more`; None: it wouldn't."""
    return next(iter(_refused(facts, card, host, use.use, {})), None) if use.more else None


def _refused(facts: HostFacts, card: Card, host: Host, use: str, more: Mapping[str, Any]) -> list[HomelabError]:
    gpu = Gpu.model_validate({**card.find, "use": use, **more})
    alone = host.model_copy(update={"gpus": {card.key: gpu}, "take_over": host.take_over or use != "vm"})
    return gates.check(facts, alone)[1]
