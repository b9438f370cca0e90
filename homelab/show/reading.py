"""A host's cards from a reading, and as the settings want them. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from homelab.host import gates, names, options
from homelab.host.classes import NVIDIA
from homelab.host.facts import HostFacts
from homelab.settings import Container, Gpu, Host, Vm, VmGpu
from homelab.show import traits
from homelab.show.cards import ShownCard, ShownGuest, Traits, group_title, in_slot
from homelab.vm.cards import VmCard, lines_of
from homelab.vm.plan import seen_of
from remote_scripts.shared.properties import parse

VFIO = "vfio-pci"
HOSTS_DRIVER = "the host's driver"
# The group of a card that wasn't read.
NOT_READ = "IOMMU group not read"


def of_reading(facts: HostFacts, host: Host, node: str) -> list[ShownCard]:
    """NVIDIA's cards and those of the settings, as they currently are.

    :param node: the host's name in Proxmox VE.
    """
    slots, _ = gates.resolve(facts, host.gpus)
    shown = {device.slot for device in facts.display_devices if device.vendor == NVIDIA} | set(slots.values())
    names_of = {slot: name for name, slot in slots.items()}
    return [_current(facts, slot, node, host, names_of.get(slot)) for slot in sorted(shown)]


def _current(facts: HostFacts, slot: str, node: str, host: Host, name: str | None) -> ShownCard:
    functions = facts.functions(slot)
    display = next((function for function in functions if function.is_display), functions[0])
    users = [
        ShownGuest("VM", user.vmid, user.name, traits.of_guest([*facts.options_of(slot, user.vmid, node).values()]))
        for user in facts.users_of(slot, node)
    ]
    users += [
        ShownGuest("container", container.id, container.values.get("hostname", ""))
        for container in facts.containers_with(slot)
    ]
    return ShownCard(
        slot,
        facts.card(slot),
        group_title(display.group, bool(facts.iommu.groups)),
        tuple(facts.describe(device) for device in facts.others_in_group(slot)),
        display.driver or "no driver",
        tuple(sorted(users)),
        traits.of_card(
            facts, slot, host.gpus[name] if name else None, host.mapping_of(name) if name else "", name or ""
        ),
    )


def wanted(
    host: Host,
    vms: Mapping[str, Vm],
    containers: Mapping[str, Container],
    current: list[ShownCard],
    facts: HostFacts | None = None,
    stack: str = "",
) -> list[ShownCard]:
    """The cards as the settings want them; cards that the settings don't name stay as they are.

    :param vms: those of this host, by name.
    :param containers: those of this host, by name.
    :param current: as they are; empty: the host wasn't read.
    :param facts: the reading that `current` was made from.
    :param stack: PROJECT/STACK, whose containers have what the settings give them, and no more.
    """
    notes = [(config.id, facts.note_of(config.id)) for config in facts.guests.configs] if facts else []
    own = {ctid for ctid, note in notes if note.values and note.owner.rpartition("/")[0] == stack}
    return _wanted(host, vms, containers, current, gates.resolve(facts, host.gpus)[0] if facts else {}, facts, own)


def _wanted(
    host: Host,
    vms: Mapping[str, Vm],
    containers: Mapping[str, Container],
    current: list[ShownCard],
    slots: Mapping[str, str],
    facts: HostFacts | None,
    own: Collection[int],
) -> list[ShownCard]:
    """:param own: ids of containers that have no card but by the settings."""
    cards = {card.place: card for card in current}
    for name, gpu in host.gpus.items():
        place = slots.get(name) or gpu.address or f"gpus.{name}"
        before = cards.get(place) or ShownCard(place, _unread_name(gpu.match, place, name), NOT_READ)
        guests = [
            ShownGuest(
                "VM",
                vm.vmid,
                _name(vm_name, vm, facts),
                _wanted_traits(_kept(use, gpu, facts), host.mapping_of(name), place, vm.vmid, facts),
            )
            for vm_name, vm in vms.items()
            for use in vm.gpus
            if use.gpu == name
        ]
        guests += [
            ShownGuest("container", container.ctid, _name(container_name, container, facts))
            for container_name, container in containers.items()
            if _takes(container, name, place, gpu.use, facts)
        ]
        guests += [ShownGuest("host", 0)] if gpu.use == "host" else []
        guests_before = {guest: guest for guest in before.guests}
        keeps = any(use.gpu == name and use.driver == "keep" for vm in vms.values() for use in vm.gpus)
        containers_before = [guest for guest in before.guests if guest.kind == "container" and guest.id not in own]
        others = containers_before if gpu.use in ("lxc", "shared") else []
        cards[place] = dataclasses.replace(
            before,
            driver=before.driver
            if before.group == NOT_READ or keeps or gpu.use == "shared" and before.driver
            else VFIO
            if gpu.use == "vm"
            else before.driver
            if before.driver not in (VFIO, "")
            else HOSTS_DRIVER,
            guests=tuple(sorted({*(_named_as(guests_before.get(guest, guest), guest) for guest in guests), *others})),
            traits=traits.wanted_of_card(facts if place in cards else None, place, gpu, before.traits),
        )
    return [cards[place] for place in sorted(cards)]


def _name(name: str, guest: Vm | Container, facts: HostFacts | None) -> str:
    """A guest's name in the settings; with a word where `up` would miss it."""
    is_there = facts is None or guest.create is not None or facts.guests.config(guest.guest_id) is not None
    return name if is_there else f"{name}: not on this host"


def _wanted_traits(use: VmGpu, mapping: str, place: str, vmid: int, facts: HostFacts | None) -> Traits:
    """A VM's options of a card as its settings want them; its owner's stay where the option is taken over."""
    card = VmCard(**use.model_dump(mode="json"), mapping=mapping, slot=facts.path_of(place) if facts else place)
    lines = lines_of(seen_of(facts, vmid).base, card) if facts and use.take_over else {}
    return traits.of_guest([parse("hostpci", card.in_place_of(next(iter(lines.values()), "")))])


def _kept(use: VmGpu, gpu: Gpu, facts: HostFacts | None) -> VmGpu:
    """The VM's settings of a card; of a shared card with driver=keep, where Proxmox VE supports it."""
    if gpu.use != "shared" or facts is None or options.refused(facts, use.gpu, options.KEEP):
        return use
    return use.model_copy(update={"driver": "keep"})


def _named_as(before: ShownGuest, wanted: ShownGuest) -> ShownGuest:
    return dataclasses.replace(wanted, name=before.name)


def wanted_of_outputs(
    outputs: Mapping[str, Any],
    name: str,
    host: Host,
    vms: Mapping[str, Vm],
    containers: Mapping[str, Container],
    current: list[ShownCard],
) -> list[ShownCard]:
    """The cards as the settings want them, where the host can't be read: places are those of the stack's outputs, by
    the cards' names.

    :param name: the host's.
    :param current: `cards.of_outputs`.
    """
    outputs_of = (outputs.get("hosts", {}).get(name) or {}).get("gpus", {})
    places = {gpu: str(output["slot"]) for gpu, output in outputs_of.items()}
    # These have a card by this stack alone.
    own = {guest.id for card in current for guest in card.guests}
    shown = [card for card in current if card.place in places.values()]
    return _wanted(host, vms, containers, shown, places, None, own)


def _unread_name(match: str | None, place: str, gpu: str) -> str:
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
