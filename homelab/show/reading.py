"""A host's cards from a reading, and with the steps of the next `up`; without a reading, as the settings want them.
Pure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from homelab.cards import resolving
from homelab.container import makers
from homelab.facts.host import HostFacts
from homelab.findings import JudgedGuest
from homelab.host import plan
from homelab.judged.tree import Tree
from homelab.properties import slot_of
from homelab.settings import Container, Host, Vm
from homelab.show import traits
from homelab.show.cards import ShownCard, ShownGuest, group_title, of_outputs
from remote_scripts.notes.container_note import Cards


def of_reading(facts: HostFacts, host: Host) -> list[ShownCard]:
    """NVIDIA's cards and those of the settings, as they currently are."""
    slots, _ = resolving.resolve(facts, host.gpus)
    shown = {device.slot for device in facts.display_devices if device.is_nvidia} | set(slots.values())
    names_of = {slot: name for name, slot in slots.items()}
    return [_current(facts, slot, host, names_of.get(slot, "")) for slot in sorted(shown)]


def _current(facts: HostFacts, slot: str, host: Host, name: str) -> ShownCard:
    functions = facts.functions(slot)
    display = next((function for function in functions if function.is_display), functions[0])
    users = [
        ShownGuest("VM", user.vmid, user.name, traits.of_guest([*facts.options_of(slot, user.vmid).values()]))
        for user in facts.users_of(slot)
    ]
    users += [
        ShownGuest("container", container.id, container.values.get("hostname", ""))
        for container in facts.containers_with(slot)
    ]
    use = host.gpus[name].use if name in host.gpus else None
    users += [_HOST] * (use == "host" and display.driver not in ("", "vfio-pci"))
    link = dict(zip(("width", "maxWidth", "speed", "maxSpeed"), (*display.lanes, *display.speeds), strict=True))
    about = {"name": facts.model(display), "iommuGroup": display.group, "driver": display.driver}
    return ShownCard(
        slot,
        facts.card(slot),
        group_title(display.group, bool(facts.iommu.groups)),
        tuple(facts.describe(device) for device in facts.others_in_group(slot)),
        display.driver or "no driver",
        tuple(sorted(users)),
        traits.of_card(facts, slot, host, name),
        data={"gpu": name or None, "slot": slot, "use": use, **about, "link": link if display.lanes[0] else None},
    )


def planned(current: list[ShownCard], tree: Tree) -> list[ShownCard]:
    """The cards with what the next `up` does: who gets and loses them, their drivers, and each step.

    :param current: of `of_reading`.
    """
    facts, cards = tree.facts, list[ShownCard]()
    names_of = {card["slot"]: name for name, card in tree.want.gpus.items()}
    changed = _changed(tree, [card.place for card in current])
    for now in current:
        name = names_of.get(now.place, "")
        has = {guest: guest for guest in now.guests}
        for guest, slots in changed:
            was = has.pop(guest, None)
            if now.place in slots:
                has[guest] = dataclasses.replace(guest, traits=was.traits if was else None)
        functions = facts.functions(now.place)
        display = next((one for one in functions if one.is_display), functions[0])
        driver = plan.driver_after(display, facts, tree.want) or "no driver"
        if name and tree.wanted.host.gpus[name].use == "host":
            has.setdefault(_HOST, _HOST)
        steps = tree.mappings[name].steps if name in tree.mappings else []
        guests = tuple(has[guest] for guest in sorted(has))
        cards.append(dataclasses.replace(now, driver=driver, guests=guests, steps=tuple(steps)))
    return cards


_HOST = ShownGuest("host", 0)


def beside(cards: list[ShownCard], tree: Tree) -> list[ShownGuest]:
    """The guests with steps that have none of these cards.

    :param cards: before and after.
    """
    shown = {guest for card in cards for guest in card.guests}
    return [guest for guest, _ in _changed(tree, []) if guest not in shown]


def _changed(tree: Tree, slots: Collection[str]) -> list[tuple[ShownGuest, set[str]]]:
    """Each guest with steps, and in which of these slots the cards are that it then has."""
    facts, found = tree.facts, list[tuple[ShownGuest, set[str]]]()
    vms = [(wish.vmid, name, wish.cards, judged) for name, (wish, judged) in tree.vms.items()]
    vms += [(one.guest, place, [], one) for place, one in tree.leaving.items() if place.startswith("vms.")]
    for vmid, name, cards, judged in vms:
        config = facts.guests.config(vmid)
        then = {**(config.values if config else {}), **judged.change}
        lines = {key: value for key, value in then.items() if key.startswith("hostpci") and value is not None}
        has = {
            facts.place_of(card.slot.partition(";")[0])
            for card in cards
            if config is None or any(map(card.is_in, lines.values()))
        }
        node = facts.cluster.node
        has |= {slot for slot in slots if facts.guests.options_in(lines.items(), facts.path_of(slot), node)}
        found += _shown("VM", vmid, name, judged, has, facts)
    containers = [(wish.ctid, name, wish.cards, judged) for name, (wish, judged) in tree.containers.items()]
    containers += [(one.guest, place, Cards(), one) for place, one in tree.leaving.items() if place.startswith("co")]
    for ctid, name, given, judged in containers:
        found += _shown("container", ctid, name, judged, {*map(slot_of, makers.addresses(given))}, facts)
    return found


def _shown(
    kind: str, number: int, name: str, judged: JudgedGuest, slots: set[str], facts: HostFacts
) -> list[tuple[ShownGuest, set[str]]]:
    config = facts.guests.config(number)
    label = config.name if config and config.name else name
    return [(ShownGuest(kind, number, label, steps=tuple(judged.steps)), slots)] if judged.steps else []


def wanted_of_outputs(
    outputs: Mapping[str, Any], name: str, host: Host, vms: Mapping[str, Vm], containers: Mapping[str, Container]
) -> list[ShownCard]:
    """The cards as the settings want them, where the host can't be read: in the slots of the stack's outputs, as far as
    those have them.

    :param outputs: homelab/contract.py.
    :param name: the host's.
    :param vms: those of this host, by name.
    :param containers: those of this host, by name.
    """
    had, gpus = (outputs.get("hosts", {}).get(name) or {}).get("gpus", {}), {}
    for key, gpu in host.gpus.items():
        place = gpu.address or f"gpus.{key}"
        known = had.get(key) or {"slot": place, "name": "", "functions": [{"id": gpu.match or key}]}
        first, *others = known["functions"]
        binds = gpu.use == "vm" and "driver" in first and "." not in known["slot"]
        leaves_vfio = gpu.use in ("lxc", "host") and first.get("driver") == "vfio-pci"
        driver = {"driver": "vfio-pci"} if binds else {"driver": "the host's driver"} if leaves_vfio else {}
        gpus[key] = {**known, "use": gpu.use, "functions": [{**first, **driver}, *others]}
    staying = [key for key, gpu in host.gpus.items() if gpu.use in ("lxc", "shared")]
    wanted = {
        "hosts": {name: {"gpus": gpus}},
        "vms": {key: {"host": name, "vmid": vm.vmid, "name": key, "gpus": vm.cards} for key, vm in vms.items()},
        "containers": {
            key: {"host": name, "ctid": one.ctid, "name": key, "cards": staying if one.numbers else one.cards}
            for key, one in containers.items()
        },
    }
    return of_outputs(wanted, name)
