"""The NVIDIA stacks of a host and its guests, and their refusals: from a reading of the host, then by what apt says on
each system (homelab/reading/stacks.py)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from homelab.container import plan as container_plan
from homelab.errors import HomelabError
from homelab.nvidia import judge, plan
from homelab.nvidia.request import Request
from homelab.nvidia.versions import fits, parse
from remote_scripts.both.read_system import Answer as SystemReading

if TYPE_CHECKING:
    from homelab.facts.guests import GuestConfig
    from homelab.facts.host import HostFacts
    from homelab.host.plan import Wanted as HostPlan
    from homelab.settings import Container, Host, Vm
    from remote_scripts.both.symptoms import Target


@dataclass(frozen=True)
class Stack(Request):
    """NVIDIA's stack on a system, in a preview or an `up`. `ctid`: of a container; `is_new`: the system isn't there
    yet; `against`: what refuses the stack where that isn't by facts, settings and apt's words alone.
    """

    ctid: int = 0
    is_new: bool = False
    against: tuple[HomelabError, ...] = ()

    @property
    def reading(self) -> SystemReading | None:
        """Of the system; None: it isn't there yet, or wasn't read."""
        return self.system if isinstance(self.system, SystemReading) else None

    @property
    def errors(self) -> list[HomelabError]:
        """What refuses the stack."""
        return [*(self.against or plan.refused(self))]

    @property
    def is_done(self) -> bool:
        """Whether the system is as it is wanted, so that apt needn't be asked: the packages' step has carried out the
        same there, and nothing of that was changed since."""
        reading = self.reading
        if self.errors or reading is None or not reading.asked:
            return False
        changed = any(layer == "packages" for layer, _ in judge.drift(reading, self.settings))
        return reading.asked == plan.wanted(self).digest and not changed

    @property
    def is_replaced(self) -> bool:
        """Whether another driver comes in place of the one that is there."""
        return self.said is not None and self.said.was not in ("", self.said.version)

    @property
    def text(self) -> str:
        """It for a person, and what differs from the settings, a line each."""
        reading = self.reading
        what = plan.described(self)
        if reading and self.is_done:
            what = f"its packages are as they are wanted, driver {reading.libraries}"
        # Of one that comes altogether that line says all.
        differences = judge.steps(reading, self.settings) if reading and reading.steps else []
        notes = (f"note: {note}" for note in plan.notes(self))
        return "\n    ".join([f"  NVIDIA's stack of {self.name}: {what}", *differences, *notes])


def of_host(
    name: str, host: Host, facts: HostFacts, want: HostPlan, reading: SystemReading | None = None
) -> Stack | None:
    """The stack that a host is to have; None: the settings have none.

    :param name: the host's, in the settings.
    :param want: the host's plan from the same reading.
    :param reading: of it as a system.
    """
    if host.nvidia is None:
        return None
    slots_of_vms = {gpu["slot"] for gpu in want.gpus.values() if gpu["use"] == "vm"}
    # A card's current driver says nothing about the next boot.
    cards = tuple(device.id for device in facts.display_devices if device.slot not in slots_of_vms)
    return Stack.of("host", host.nvidia, f"hosts.{name}", reading, cards=cards)


def of_guests(
    on_host: Stack | None,
    facts: HostFacts,
    want: HostPlan,
    vms: Mapping[str, Vm],
    containers: Mapping[str, Container],
    readings: Mapping[str, SystemReading],
) -> list[Stack]:
    """The stacks that a host's guests are to have.

    :param on_host: the host's own.
    :param want: the host's plan from the same reading.
    :param vms: the host's VMs, by their names in the settings.
    :param containers: the host's containers, by their names in the settings.
    :param readings: a guest's id -> the reading of that system.
    """
    # That a host has none at all, container.plan refuses.
    driver = facts.nvidia.version or None
    if on_host is not None:
        way = plan.coming(on_host)
        driver = way.driver if way else None
    driver_cards = container_plan.cards(facts, want.gpus, vms, want.vfio_words, driver_comes=on_host is not None)
    stacks = []

    def add(
        target: Target, guest: Vm | Container, place: str, slots: Collection[str] | None, driver: str | None
    ) -> None:
        config, reading = facts.guests.config(guest.guest_id), readings.get(str(guest.guest_id))
        if guest.nvidia is not None:
            # A version that the settings name is more precise than its branch.
            is_named = driver and guest.nvidia.driver and fits(parse(guest.nvidia.driver), parse(driver))
            known = {
                **_distribution(guest, config),
                "cards": None if slots is None else tuple(one.id for one in facts.display_devices if one.slot in slots),
                "host_driver": None if is_named else driver,
            }
            stack = Stack.of(target, guest.nvidia, place, reading, **known)
            ctid = guest.guest_id if target == "lxc" else 0
            stacks.append(replace(stack, ctid=ctid, is_new=config is None))

    for name, vm in vms.items():
        add("vm", vm, f"vms.{name}", [want.gpus[gpu]["slot"] for gpu in vm.cards if gpu in want.gpus], None)
    for name, container in containers.items():
        # One that can't have one of its cards, container.plan refuses.
        numbers, refused = container_plan.numbers(name, container, driver_cards, want.gpus)
        slots = None if refused else [driver_cards.slots[number] for number in numbers]
        add("lxc", container, f"containers.{name}", slots, driver)
    return stacks


def refuse_off(facts: HostFacts, guest: Vm | Container, place: str) -> Iterator[HomelabError]:
    """A guest that is off, and stays off: it can't be read, and what is installed in it can't be changed.

    :param place: its, in the settings.
    """
    is_there = facts.guests.config(guest.guest_id) is not None
    is_read = facts.systems.get(str(guest.guest_id)) is not None
    is_on = is_read or guest.guest_id in facts.guests.running
    if is_there and guest.wanted_power == "keep" and not is_on:
        yield HomelabError(
            wanted=f"{place}: a guest that runs",
            found=f"{guest.guest_id} is off, and {place}.power is keep",
            why="NVIDIA's stack is installed from inside the guest",
            next=f"start it, or set {place}.power: running",
        )


# Names of Proxmox VE's container templates, and of cloud images: debian-13-standard_13.1-2_amd64.tar.zst.
_TEMPLATE = re.compile(r"(?:.*/)?(debian|ubuntu)-(\d+(?:\.\d+)?)-.*\.(?:tar\.\w+|qcow2|raw|vmdk)")


def _distribution(guest: Vm | Container, config: GuestConfig | None) -> dict[str, str]:
    """What is known of a guest's distribution without a reading of it: from its configuration, else from its
    template."""
    if config is None:
        known = next(filter(None, map(_TEMPLATE.fullmatch, guest.volumes)), None)
        return {"distribution": known[1], "version": known[2]} if known else {}
    kind = config.values.get("ostype", "unmanaged") if config.kind == "lxc" else "unmanaged"
    kind = "windows" if config.is_windows else kind
    return {} if kind in ("debian", "ubuntu", "unmanaged") else {"distribution": kind, "version": ""}
