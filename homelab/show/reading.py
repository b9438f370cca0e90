"""The cards of a host as a reading has them, and as the settings want them. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from homelab.host import gates, names, options
from homelab.host.classes import NVIDIA
from homelab.host.facts import HostFacts
from homelab.settings import Container, Gpu, Host, Vm, VmGpu
from homelab.show import traits
from homelab.show.cards import ShownCard, ShownGuest, Traits, group_of, in_slot

VFIO = "vfio-pci"
THE_DRIVER = "the host's driver"
# Of a card that nobody has read: in which group it is.
NOT_READ = "IOMMU group not read"


def of_reading(facts: HostFacts, host: Host, node: str) -> list[ShownCard]:
    """NVIDIA's cards and those of the settings, as they are now.

    :param node: the host's name in Proxmox VE.
    """
    slots, _ = gates.resolve(facts, host.gpus)
    every = {one.slot for one in facts.display_devices if one.vendor == NVIDIA} | set(slots.values())
    names_of = {slot: name for name, slot in slots.items()}
    return [_read(facts, slot, node, host, names_of.get(slot)) for slot in sorted(every)]


def _read(facts: HostFacts, slot: str, node: str, host: Host, name: str | None) -> ShownCard:
    functions = facts.functions(slot)
    shown = next((one for one in functions if one.is_display), functions[0])
    users = [
        ShownGuest("VM", user.vmid, user.name, traits.of_guest([*facts.options_of(slot, user.vmid, node).values()]))
        for user in facts.users_of(slot, node)
    ]
    users += [ShownGuest("container", one.id, one.values.get("hostname", "")) for one in facts.containers_with(slot)]
    return ShownCard(
        slot,
        facts.card(slot),
        group_of(shown.group, bool(facts.iommu.groups)),
        tuple(facts.describe(one) for one in facts.others_in_group(slot)),
        shown.driver or "no driver",
        tuple(sorted(users)),
        traits.of_card(
            facts, slot, host.gpus[name] if name else None, host.mapping_of(name) if name else "", name or ""
        ),
    )


def wanted(
    host: Host,
    vms: Mapping[str, Vm],
    containers: Mapping[str, Container],
    now: list[ShownCard],
    facts: HostFacts | None = None,
) -> list[ShownCard]:
    """The same as the settings want it: cards that they don't name stay as they are.

    :param vms: those of this host, by name.
    :param containers: those of this host, by name.
    :param now: as it is; empty: nobody has looked.
    :param facts: what `now` was made from.
    """
    return _wanted(host, vms, containers, now, gates.resolve(facts, host.gpus)[0] if facts else {}, facts)


def _wanted(
    host: Host,
    vms: Mapping[str, Vm],
    containers: Mapping[str, Container],
    now: list[ShownCard],
    slots: Mapping[str, str],
    facts: HostFacts | None,
) -> list[ShownCard]:
    found = {card.place: card for card in now}
    for gpu, about in host.gpus.items():
        place = slots.get(gpu) or about.address or f"gpus.{gpu}"
        before = found.get(place) or ShownCard(place, _unread(about.match, place, gpu), NOT_READ)
        guests = [
            ShownGuest("VM", vm.vmid, name, traits.wanted_of_guest(_kept(use, about, facts), _now(before, vm.vmid)))
            for name, vm in vms.items()
            for use in vm.gpus
            if use.gpu == gpu
        ]
        guests += [
            ShownGuest("container", one.ctid, name)
            for name, one in containers.items()
            if _takes(one, gpu, place, about.use, facts)
        ]
        guests += [ShownGuest("host", 0)] if about.use == "host" else []
        known = {guest: guest for guest in before.guests}
        keeps = any(use.gpu == gpu and use.driver == "keep" for vm in vms.values() for use in vm.gpus)
        others = [guest for guest in before.guests if guest.kind == "container" and about.use in ("lxc", "shared")]
        found[place] = dataclasses.replace(
            before,
            driver=before.driver
            if keeps or about.use == "shared" and before.driver
            else VFIO
            if about.use == "vm"
            else before.driver
            if before.driver not in (VFIO, "")
            else THE_DRIVER,
            guests=tuple(sorted({*(_called_as(known.get(guest, guest), guest) for guest in guests), *others})),
            about=traits.wanted_of_card(facts if place in found else None, place, about, before.about),
        )
    return [found[place] for place in sorted(found)]


def _now(card: ShownCard, vmid: int) -> Traits:
    """How a VM has a card by now."""
    return next((one.about or () for one in card.guests if (one.kind, one.id) == ("VM", vmid)), ())


def _kept(use: VmGpu, gpu: Gpu, facts: HostFacts | None) -> VmGpu:
    """A card that is handed over has driver=keep, where Proxmox VE knows it."""
    if gpu.use != "shared" or facts is None or options.known(facts, use.gpu, options.KEEP):
        return use
    return use.model_copy(update={"driver": "keep"})


def _called_as(known: ShownGuest, wanted: ShownGuest) -> ShownGuest:
    return dataclasses.replace(wanted, name=known.name)


def wanted_of_outputs(
    outputs: Mapping[str, Any],
    name: str,
    host: Host,
    vms: Mapping[str, Vm],
    containers: Mapping[str, Container],
    now: list[ShownCard],
) -> list[ShownCard]:
    """The same for who can't read the host: a card is where the stack's outputs have it by its name in the settings.

    :param name: the host's.
    :param now: `cards.of_outputs`.
    """
    known = (outputs.get("hosts", {}).get(name) or {}).get("gpus", {})
    places = {gpu: str(about["slot"]) for gpu, about in known.items()}
    return _wanted(host, vms, containers, [card for card in now if card.place in places.values()], places, None)


def _unread(match: str | None, place: str, gpu: str) -> str:
    return names.card(match, place) if match else f"{gpu} at {place}"


def _takes(container: Container, gpu: str, place: str, use: str, facts: HostFacts | None) -> bool:
    if container.gpus is not None:
        return gpu in container.gpus
    numbers = container.numbers
    if use not in ("lxc", "shared") or not numbers:
        return False
    if numbers == "all" or facts is None:
        return True
    return in_slot((address for address, minor in facts.nvidia_minors.items() if minor in numbers), place)
