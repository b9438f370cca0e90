"""A host's cards from a reading, and as the steps of the next `up` leave them; without a reading, as the settings want
them. Pure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from homelab.cards import resolving
from homelab.cards import values as card_values
from homelab.container import makers
from homelab.container import plan as container_plan
from homelab.facts.guests import GuestConfig
from homelab.facts.host import HostFacts
from homelab.host import plan
from homelab.properties import slot_of
from homelab.settings import Container, Host, Vm
from homelab.show import traits
from homelab.show.cards import ShownCard, ShownGuest, group_title, of_outputs
from homelab.vm import preview
from homelab.vm.plan import judge_vm, seen_of
from remote_scripts.notes.container_note import Cards
from remote_scripts.pve import vm_conf
from remote_scripts.pve.guest_kinds import CONTAINER, VM


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
    by_host = name in host.gpus and host.gpus[name].use == "host" and display.driver not in ("", "vfio-pci")
    users += [ShownGuest("host", 0)] * by_host
    return ShownCard(
        slot,
        facts.card(slot),
        group_title(display.group, bool(facts.iommu.groups)),
        tuple(facts.describe(device) for device in facts.others_in_group(slot)),
        display.driver or "no driver",
        tuple(sorted(users)),
        traits.of_card(facts, slot, host, name),
    )


def after(
    current: list[ShownCard],
    facts: HostFacts,
    host: Host,
    want: plan.Wanted,
    vms: dict[str, Vm],
    containers: dict[str, Container],
    stack: str = "",
) -> tuple[list[ShownCard], HostFacts]:
    """The cards once the steps of the next `up` are done, and the reading as it is then, for what the host itself is
    told. The preview's judges say which steps there are: here they are done in a reading.

    :param current: of `of_reading`.
    :param want: the host's plan.
    :param vms: those of this host, by name.
    :param containers: those of this host, by name.
    :param stack: PROJECT/STACK, whose guests may lose what they have from it.
    """
    configs = {config.id: config for config in facts.guests.configs}
    leaving = preview.leaving(facts, VM, [vm.vmid for vm in vms.values()], stack)
    leaving += preview.leaving(facts, CONTAINER, [container.ctid for container in containers.values()], stack)
    changes = {config.id: change for _, config, change in leaving}
    for name, vm in vms.items():
        wish = preview.wish_of(name, vm, host, want.gpus)
        seen = seen_of(facts, vm.vmid, wish.takes(host.hands_over), stack)
        changes[vm.vmid] = judge_vm(seen, wish, facts).change
        configs.setdefault(vm.vmid, GuestConfig(kind="vm", id=vm.vmid, lines=f"name: {name}"))
    changed = {guest: _with(change, configs[guest]) for guest, change in changes.items() if change}
    later = dataclasses.replace(
        facts,
        guests=dataclasses.replace(
            facts.guests,
            configs=[*{**configs, **changed}.values()],
            running=facts.guests.running - {*changed},  # what it runs with counts no more
            mappings="\n\n".join([facts.guests.mappings, *_mappings(facts, host, want)]),
        ),
        devices=[dataclasses.replace(one, driver=plan.driver_after(one, facts, want)) for one in facts.devices],
        cmdline=dataclasses.replace(facts.cmdline, running=f"{facts.cmdline.others} {want.words}"),
        card_states=traits.states_with(card_values.wanted(want.gpus, host.gpus), facts),
    )
    moves, cards = [*_of_containers(facts, host, want, vms, containers)], list[ShownCard]()
    for now, then in zip(current, of_reading(later, host), strict=True):
        comes = {guest for guest, gets, _ in moves if now.place in gets and guest not in now.guests}
        goes = {guest for guest, _, loses in moves if now.place in loses}
        have_it = tuple(sorted({*then.guests} - goes | comes))
        cards.append(dataclasses.replace(now, driver=then.driver, guests=have_it, traits=then.traits))
    return cards, later


def _with(change: Mapping[str, str | None], config: GuestConfig) -> GuestConfig:
    options = {key: value for key, value in {**config.options, **change}.items() if value is not None}
    lines = (key if key.startswith("lxc.") else f"{key}: {value}" for key, value in options.items())
    return dataclasses.replace(config, lines="\n".join(lines))


def _mappings(facts: HostFacts, host: Host, want: plan.Wanted) -> Iterator[str]:
    """The mappings of cards that leave the host, as far as they count here."""
    flagged = vm_conf.migrating(facts.guests.mappings)
    for name, card in want.gpus.items():
        mapping, gpu = host.mapping_of(name), host.gpus[name]
        if gpu.may_leave:
            flag = "\tlive-migration-capable 1" * (gpu.live_migration or mapping in flagged)
            yield f"{mapping}\n\tmap node={facts.cluster.node},path={card['path'].partition(';')[0]}\n{flag}"


def _of_containers(
    facts: HostFacts, host: Host, want: plan.Wanted, vms: dict[str, Vm], containers: dict[str, Container]
) -> Iterator[tuple[ShownGuest, set[str], set[str]]]:
    """Each container that is changed, with the slots of the cards that it then has from this program, and of those that
    it loses; arguments as of `after`.
    """
    for name, container in containers.items():
        wish = container_plan.wish_of(name, container, facts, want, vms, host)
        given = facts.container_note(container.ctid).given.cards
        if given != wish.cards or container_plan.judge_container(wish, facts).change:
            had, has = ({*map(slot_of, makers.addresses(one))} for one in (given or Cards(), wish.cards))
            yield ShownGuest("container", container.ctid, name), has, had - has


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
