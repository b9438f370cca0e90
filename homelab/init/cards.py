"""The cards of a host as a person chooses among them: by name, with what is with them, who uses them, and what `up` would refuse."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from homelab.container import others
from homelab.errors import HomelabError
from homelab.host import gates
from homelab.host.classes import NVIDIA
from homelab.host.facts import HostFacts, bound_by_word
from homelab.settings import Gpu, Host


@dataclass(frozen=True)
class Card:
    """`place`: its slot, `0000:01:00`, or the address of a virtual function (SR-IOV), which is a card of its own; `id`: of its graphics
    function; `alone`: is it the only one with that id? `name`: as every message calls it; `key`: a name for the settings.
    """

    place: str
    id: str
    name: str
    key: str
    alone: bool

    @property
    def is_nvidia(self) -> bool:
        return self.id.startswith(f"{NVIDIA}:")

    @property
    def is_virtual(self) -> bool:
        return "." in self.place

    @property
    def settings(self) -> dict[str, str]:
        """How the settings tell it apart from the host's other cards."""
        if self.is_virtual:
            return {"address": self.place}
        return {"match": self.id} if self.alone else {"match": self.id, "address": self.place}

    def __str__(self) -> str:
        return self.name


def cards(facts: HostFacts) -> list[Card]:
    """The host's graphics cards and their virtual functions, in the order of their addresses."""
    shown = {device.slot: device for device in sorted(facts.display_devices, key=lambda one: one.address, reverse=True)}
    shown |= {device.address: device for device in facts.devices if device.is_display and device.physfn}
    found: list[Card] = []
    for place, device in sorted(shown.items()):
        alone = sum(other.id == device.id for other in shown.values()) == 1
        key = key_of(facts.model(device), [card.key for card in found], "card")
        found.append(Card(place, device.id, facts.card(place), key, alone))
    return found


def key_of(name: str, taken: Iterable[str], otherwise: str) -> str:
    """A name for the settings: letters, digits and hyphens; `rtx5090` of `RTX 5090`."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    plain = re.sub(r"^(rtx|gtx|rx|gt)-(?=[a-z]?[0-9])", r"\1", words)[:36].strip("-")
    base = plain if re.match(r"[a-z]", plain) and len(plain) > 1 else otherwise if not plain else f"{otherwise}-{plain}"
    used = set(taken)
    return next(key for key in (base, *(f"{base}-{number}" for number in range(2, 999))) if key not in used)


def lines(facts: HostFacts, card: Card, node: str) -> list[str]:
    """What a person wants to know of a card before it is given away, a line each."""
    functions = facts.functions(card.place)
    found = [
        f"{device.address} {device.kind} [{device.id}], driver {device.driver or 'none'}"
        + (", the host's screen" if device.boot_vga else "")
        for device in functions
    ]
    groups = sorted({device.group for device in functions if device.group is not None})
    others = facts.others_in_group(card.place)
    where = (
        f"IOMMU group{'s' if len(groups) > 1 else ''} {', '.join(map(str, groups))}"
        if groups
        else "in no IOMMU group, though the IOMMU is on; by itself it would be"
        if facts.iommu.groups
        else "no IOMMU group yet (the IOMMU is off); as predicted"
    )
    found.append(f"{where}: {'with ' + '; '.join(map(facts.describe, others)) if others else 'alone'}")
    used = [f"{user}{', which runs' if user.running else ''}" for user in facts.users_of(card.place, node)]
    used += [f"container {ctid}" for ctid in containers_with(facts, card)]
    used += [str(holder) for holder in facts.using(device.address for device in functions)]
    return [*found, f"used by: {', '.join(dict.fromkeys(used)) or 'nobody'}"]


def containers_with(facts: HostFacts, card: Card) -> list[int]:
    """Ids of the containers whose configuration names the card's device node."""
    return [config.id for config in facts.containers_with(card.place)]


def possible_uses(facts: HostFacts, card: Card, host: Host) -> set[str]:
    """Of `vm`, `lxc` and `host`, what `up` wouldn't refuse. `refused` says why not. A virtual function is for VMs alone."""
    return {use for use in ("vm", *(() if card.is_virtual else ("lxc", "host"))) if not refused(facts, card, host, use)}


def with_vm(facts: HostFacts, card: Card) -> list[HomelabError]:
    """What keeps a card that this program has bound for a VM from the host's driver as yet, and how that ends."""
    return gates.taken_out(facts, card.key, Gpu.model_validate({**card.settings, "use": "lxc"}), card.place)


def screen_lost(facts: HostFacts, card: Card, host: Host) -> HomelabError | None:
    """What a person has to accept (`allowConsole`) before a VM can have the card; None: nothing stands against it, or something else does."""
    found = refused(facts, card, host, "vm")
    return found[0] if found and not refused(facts, card, host, "vm", allowConsole=True) else None


def refused(facts: HostFacts, card: Card, host: Host, use: str, **more: object) -> list[HomelabError]:
    """What stands against giving the card to a VM (`use: vm`), or leaving it with the host's driver (`lxc`, `host`), with takeOver where that helps.

    :param more: of the card's settings.
    """
    gpu = Gpu.model_validate({**card.settings, "use": use, **more})
    alone = host.model_copy(update={"gpus": {card.key: gpu}, "take_over": host.take_over or use != "vm"})
    errors = gates.check(facts, alone)[1]
    if use == "lxc" and not card.is_nvidia:
        shown = next(one for one in facts.functions(card.place) if one.is_display)
        # One that this program has bound goes back to its driver with the next boot.
        given_back = shown.address in bound_by_word(facts.cmdline.running)
        closed = None if given_back else others.unserved(f"gpus.{card.key} ({card.name})", facts, shown, "")
        errors = [*errors, *([closed] if closed else [])]
    return errors
