"""Which card of a host each name of the settings is: its slot, or why it can't be told. Pure."""

from __future__ import annotations

from dataclasses import replace

from homelab.errors import HomelabError
from homelab.facts import kernel_log
from homelab.facts.devices import Device
from homelab.facts.host import HostFacts, bound_by_word
from homelab.settings import Gpu


def resolve(facts: HostFacts, gpus: dict[str, Gpu]) -> tuple[dict[str, str], list[HomelabError]]:
    """GPU name -> slot (`0000:01:00`), or address of a virtual function; and the errors of those that can't be
    resolved: no such card, several, one under two names, or `functions` that aren't the card's."""
    slots: dict[str, str] = {}
    errors: list[HomelabError] = []
    for name, gpu in gpus.items():
        devices = [device for device in facts.devices if _matches(device, gpu)]
        # A virtual function is a card of its own, named by its address.
        physical = {device.slot for device in devices if not device.physfn}
        places = sorted(physical or {device.address for device in devices})
        if len(places) != 1:
            errors.append(_unresolved_error(facts, name, gpu, places))
        elif other_name := next((other for other, slot in slots.items() if slot == places[0]), None):
            errors.append(_same_card_error(name, other_name, places[0]))
        elif error := _functions_error(facts, name, gpu, places[0]):
            errors.append(error)
        else:
            slots[name] = places[0]
    return slots, errors


def choosing(facts: HostFacts, gpus: dict[str, Gpu]) -> HostFacts:
    """The reading, in which a card consists of the functions that the settings name for it (`functions`), if they
    do."""
    with_functions = {name: gpu for name, gpu in gpus.items() if gpu.functions}
    slots = resolve(facts, with_functions)[0]
    return replace(facts, chosen_functions={slot: gpus[name].functions for name, slot in slots.items()})


def _matches(device: Device, gpu: Gpu) -> bool:
    # Settings leave out the ".0" of a function. A slot may hold eight virtual functions, and each is another card.
    first = device.address.removesuffix(".0")
    if gpu.address is not None and gpu.address not in (device.address, first if device.physfn else device.slot):
        return False
    # It is what makes a card, also by address alone: buses are renumbered when hardware changes.
    return device.is_display and (gpu.match is None or device.id == gpu.match)


def _functions_error(facts: HostFacts, name: str, gpu: Gpu, slot: str) -> HomelabError | None:
    """The error for `functions` that don't exist, don't belong to the card's slot or its own switch, or lack its
    graphics function; None: none are named, or they are right."""
    around = [device.address for device in facts.around(slot)]
    display = [device.address for device in facts.around(slot) if device.is_display][:1]
    wrong = [
        f"{address} is not there, or neither in the card's slot nor behind a switch on the card, or it is a bridge or "
        "a virtual function (SR-IOV)"
        for address in gpu.functions
        if address not in around
    ]
    wrong += [f"the graphics function, {one}, is not among them" for one in display if one not in gpu.functions]
    if not (gpu.functions and wrong):
        return None
    return HomelabError(
        wanted=f"gpus.{name}.functions to be functions of the card at {slot}",
        found="; ".join(wrong),
        why="everything named there is bound to vfio-pci at boot, so it must belong to this card",
        next=f"name functions of {', '.join(around) or 'a card'}, the graphics function among them (a virtual "
        "function is a card of its own, without a list); what shares only the IOMMU group is named in "
        f"gpus.{name}.allowGroupMembers",
    )


def _same_card_error(name: str, other_name: str, slot: str) -> HomelabError:
    return HomelabError(
        wanted=f"gpus.{name} and gpus.{other_name} to be two cards",
        found=f"both are the one in {slot}",
        why="one card can be given away only once",
        next="correct their `match` or `address`",
    )


def _unresolved_error(facts: HostFacts, name: str, gpu: Gpu, places: list[str]) -> HomelabError:
    wanted = " at ".join(part for part in (gpu.match or "a graphics card", gpu.address) if part)
    if places:
        return HomelabError(
            wanted=f"gpus.{name}: one card ({wanted})",
            found=f"{len(places)}: {', '.join(places)}",
            why="identical cards can't be told apart by their id",
            next=f'add `address: "{places[0]}"` (or another of them) to gpus.{name}',
        )
    cards = "; ".join(facts.card(device.address) for device in facts.display_devices) or "no graphics card at all"
    bound = [address for address, ids in bound_by_word(facts.cmdline.running).items() if ids == gpu.match]
    was = bound or ([f"{gpu.address}.0"] if gpu.address else [])
    gone = [one.error for one in kernel_log.of_card(facts, f"gpus.{name}", was) if not one.harmless]
    error = HomelabError(
        wanted=f"gpus.{name}: a card ({wanted})",
        found=f"graphics cards here: {cards}",
        why="a card is named by its graphics function; nothing is bound in place of one that isn't there",
        next="correct `match` or `address`; if the card is missing from `lspci -nn`, look at its power and its slot",
    )
    return error.retold(found=f"{error.found}; {gone[0].found}", why=gone[0].why, next=gone[0].next) if gone else error
