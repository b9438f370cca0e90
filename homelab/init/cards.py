"""A host's cards for a user's choice: their names, their groups, their guests, and the refusals of `up`."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass

from homelab.container import other_makers
from homelab.errors import HomelabError
from homelab.host import consoles, gates
from homelab.host.classes import NVIDIA
from homelab.host.facts import HostFacts, bound_by_word
from homelab.settings import Gpu, Host


@dataclass(frozen=True)
class Card:
    """A card that can be chosen. `place`: its slot, `0000:01:00`, or the address of a virtual function (SR-IOV), which
    is a card by itself; `id`: of its graphics function; `alone`: whether it is the only one with that id; `name`: for
    messages; `key`: for the settings.
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
        """`match` or `address`, by which the settings find it among the host's cards."""
        if self.is_virtual:
            return {"address": self.place}
        return {"match": self.id} if self.alone else {"match": self.id, "address": self.place}

    def __str__(self) -> str:
        return self.name


def cards(facts: HostFacts) -> list[Card]:
    """The host's graphics cards and their virtual functions, in the order of their addresses."""
    shown = {
        device.slot: device for device in sorted(facts.display_devices, key=lambda device: device.address, reverse=True)
    }
    shown |= {device.address: device for device in facts.devices if device.is_display and device.physfn}
    choices: list[Card] = []
    for place, device in sorted(shown.items()):
        alone = sum(other.id == device.id for other in shown.values()) == 1
        key = key_of(facts.model(device), [card.key for card in choices], "card")
        choices.append(Card(place, device.id, facts.card(place), key, alone))
    return choices


# As people call them. A Matrox G200, or ASPEED's, is the screen of a server's management controller (BMC).
_SHORTER = (
    (r"^(rtx|gtx|rx|gt)-(?=[a-z]?[0-9])", r"\1"),
    (r"^matrox-electronics-systems-ltd-(mga-)?", "matrox-"),
    (r"^matrox-(?=g200)", "bmc-"),
    (r"^aspeed-(technology-inc-aspeed-)?graphics-family$", "bmc-aspeed"),
)


def key_of(name: str, taken: Iterable[str], otherwise: str) -> str:
    """A name for the settings: letters, digits and hyphens; `rtx5090` of `RTX 5090`."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    for pattern, instead in _SHORTER:
        words = re.sub(pattern, instead, words)
    plain = words[:36].strip("-")
    base = plain if re.match(r"[a-z]", plain) and len(plain) > 1 else otherwise if not plain else f"{otherwise}-{plain}"
    used = set(taken)
    return next(key for key in (base, *(f"{base}-{number}" for number in range(2, 999))) if key not in used)


def lines(facts: HostFacts, card: Card, node: str) -> list[str]:
    """Lines about a card for the user who chooses its use: functions, group, guests and programs."""
    functions = facts.functions(card.place)
    screens = consoles.screens(facts, functions)
    text_lines = [
        f"{device.address} {device.kind} [{device.id}], driver {device.driver or 'none'}"
        + (", the host's screen" if device in screens else "")
        for device in functions
    ]
    groups = sorted({device.group for device in functions if device.group is not None})
    others = facts.others_in_group(card.place)
    group = (
        f"IOMMU group{'s' if len(groups) > 1 else ''} {', '.join(map(str, groups))}"
        if groups
        else "in no IOMMU group, though the IOMMU is on; by itself it would be"
        if facts.iommu.groups
        else "no IOMMU group yet (the IOMMU is off); as predicted"
    )
    text_lines.append(f"{group}: {'with ' + '; '.join(map(facts.describe, others)) if others else 'alone'}")
    used = [f"{user}{', which runs' if user.running else ''}" for user in facts.users_of(card.place, node)]
    used += [f"container {ctid}" for ctid in containers_with(facts, card)]
    used += [str(holder) for holder in facts.holders_of(device.address for device in functions)]
    return [*text_lines, f"used by: {', '.join(dict.fromkeys(used)) or 'nobody'}"]


def containers_with(facts: HostFacts, card: Card) -> list[int]:
    """Ids of the containers whose configuration names the card's device node."""
    return [config.id for config in facts.containers_with(card.place)]


def not_asked_about(facts: HostFacts, all_cards: Iterable[Card], node: str, configured: Container[str]) -> list[Card]:
    """The cards that nobody is asked about: the host's screen, which no guest uses, beside a card that is none.

    :param configured: places of cards that the settings have.
    """
    all_cards = list(all_cards)
    screens = [
        card
        for card in all_cards
        if consoles.screens(facts, facts.functions(card.place))
        and card.place not in configured
        and not facts.users_of(card.place, node)
        and not containers_with(facts, card)
    ]
    return screens if len(screens) < len(all_cards) else []


def possible_uses(facts: HostFacts, card: Card, host: Host) -> set[str]:
    """The uses among `vm`, `lxc` and `host` that `up` doesn't refuse; `refused` has the reasons. Virtual functions are
    for VMs alone.
    """
    return {use for use in ("vm", *(() if card.is_virtual else ("lxc", "host"))) if not refused(facts, card, host, use)}


def with_vm(facts: HostFacts, card: Card) -> list[HomelabError]:
    """Why a card that this program has bound for a VM can't go back to the host's driver yet, and what to do."""
    return gates.out_of_vms(facts, card.key, Gpu.model_validate({**card.settings, "use": "lxc"}), card.place)


def screen_lost(facts: HostFacts, card: Card, host: Host) -> HomelabError | None:
    """The refusal that `allowConsole` alone opens; None: the card isn't refused, or is refused for another reason,
    too.
    """
    errors = refused(facts, card, host, "vm")
    return errors[0] if errors and not refused(facts, card, host, "vm", allowConsole=True) else None


def refused(facts: HostFacts, card: Card, host: Host, use: str, **more: object) -> list[HomelabError]:
    """The refusals of a use: `vm`, or with the host's driver (`lxc`, `host`), then with takeOver where that helps.

    :param more: further settings of the card.
    """
    gpu = Gpu.model_validate({**card.settings, "use": use, **more})
    alone = host.model_copy(update={"gpus": {card.key: gpu}, "take_over": host.take_over or use != "vm"})
    errors = gates.check(facts, alone)[1]
    if use == "lxc" and not card.is_nvidia:
        display = next(function for function in facts.functions(card.place) if function.is_display)
        # A card that this program has bound goes back to its driver at the next boot.
        given_back = display.address in bound_by_word(facts.cmdline.running)
        unserved = None if given_back else other_makers.unserved(f"gpus.{card.key} ({card.name})", facts, display, "")
        errors = [*errors, *([unserved] if unserved else [])]
    return errors
