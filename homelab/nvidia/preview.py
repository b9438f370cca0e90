"""The NVIDIA stacks of a host and its guests in a preview, and their refusals: from the settings alone, then from a
reading of the host."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from homelab.container import plan as container_plan
from homelab.errors import HomelabError
from homelab.nvidia.checks import refusals
from homelab.nvidia.driver_source import source_of
from homelab.nvidia.flavour import choose
from homelab.nvidia.judge import steps
from homelab.nvidia.plan import all_refusals, branch_notes
from homelab.nvidia.request import Request, SystemFacts
from homelab.nvidia.versions import fits, parse

if TYPE_CHECKING:
    from homelab.host.facts import HostFacts
    from homelab.host.plan import Wanted
    from homelab.nvidia.reading import SystemReading
    from homelab.settings import Container, Host, Settings, Vm
    from homelab.settings.nvidia import Nvidia

# Proxmox VE's major version -> its base's (https://pve.proxmox.com/wiki/FAQ).
_BASE = {"8": "12", "9": "13"}


def from_settings(settings: Settings) -> list[HomelabError]:
    """Refusals that the settings alone decide, such as a driver that doesn't know a card's id, or a container that
    wants another driver than its host gets."""
    errors: list[HomelabError] = []
    for name, host in settings.hosts.items():
        if host.nvidia:
            errors += refusals(
                Request(
                    "host", host.nvidia, SystemFacts(cards=_card_ids(host, "lxc", "host", "shared")), f"hosts.{name}"
                )
            )
    for name, vm in settings.vms.items():
        if vm.nvidia:
            ids = [settings.hosts[vm.host].gpus[use.gpu].match for use in vm.gpus]
            cards = tuple(card for card in ids if card)
            # A card that is set by its address alone has no id yet, so that the VM's cards aren't known.
            system = SystemFacts(cards=cards if len(cards) == len(ids) else None)
            errors += refusals(Request("vm", vm.nvidia, system, f"vms.{name}"))
    for name, container in settings.containers.items():
        if container.nvidia:
            host = settings.hosts[container.host]
            card_ids = [host.gpus[gpu].match for gpu in container.cards]
            system = SystemFacts(
                host_driver=_driver_to_follow(container.nvidia, host.nvidia.driver if host.nvidia else None),
                cards=tuple(card for card in card_ids if card) if card_ids and all(card_ids) else None,
            )
            errors += refusals(Request("lxc", container.nvidia, system, f"containers.{name}"))
    return errors


def _card_ids(host: Host, *uses: str) -> tuple[str, ...] | None:
    """The ids of a host's cards of these uses that the settings name; None where they name none. The host may have
    more."""
    return tuple(gpu.match for gpu in host.gpus.values() if gpu.use in uses and gpu.match) or None


def _driver_to_follow(container: Nvidia, host_driver: str | None) -> str | None:
    """The host's driver for a container's request; None where the container's settings name a version of it, which is
    more precise.

    :param host_driver: branch or version that the host gets.
    """
    if host_driver and container.driver and fits(parse(container.driver), parse(host_driver)):
        return None
    return host_driver


def describe(
    name: str,
    host: Host,
    facts: HostFacts,
    want: Wanted,
    vms: dict[str, Vm],
    containers: dict[str, Container],
    readings: Mapping[str, SystemReading] = MappingProxyType({}),
) -> tuple[str, list[HomelabError]]:
    """The plan's lines for a host and its guests, and the refusals.

    :param name: the host's, in the settings.
    :param want: the host's plan from the same reading.
    :param vms: the host's VMs, by their names in the settings.
    :param containers: the host's containers, by their names in the settings.
    :param readings: `host`, or a guest's id -> the reading of that system.
    """
    requests: list[tuple[str, SystemReading | None, Request]] = []
    host_driver: str | None = None
    if host.nvidia:
        request = of_host(name, host.nvidia, facts, want, readings.get("host"))
        requests.append(("the host", readings.get("host"), request))
        if driver := request.driver:
            host_driver = str(driver.version if driver.exact else driver.branch)
    for guest, vm in vms.items():
        if vm.nvidia:
            slots = [want.gpus[use.gpu]["slot"] for use in vm.gpus if use.gpu in want.gpus]
            cards = tuple(device.id for device in facts.display_devices if device.slot in slots)
            system = dataclasses.replace(_guest_system(vm, facts, readings), cards=cards)
            request = Request("vm", vm.nvidia, system, f"vms.{guest}")
            requests.append((f"VM {vm.vmid} ({guest})", readings.get(str(vm.vmid)), request))
    driver_cards = container_plan.cards(facts, want, vms, host.node or name, driver_comes=host.nvidia is not None)
    for guest, container in containers.items():
        if container.nvidia:
            # Where this program changes the host's driver, the loaded one doesn't count.
            loaded = None if host.nvidia else facts.nvidia.version or None
            system = dataclasses.replace(
                _guest_system(container, facts, readings),
                host_driver=_driver_to_follow(container.nvidia, host_driver) if host.nvidia else loaded,
                cards=_cards_of(guest, container, facts, want, driver_cards),
            )
            label, reading = f"container {container.ctid} ({guest})", readings.get(str(container.ctid))
            requests.append((label, reading, Request("lxc", container.nvidia, system, f"containers.{guest}")))
    lines = [
        "\n    ".join(
            [
                f"  NVIDIA's stack in {label}: {_text(request)}",
                # Of one that comes altogether that line says all.
                *(steps(reading, request.settings) if reading and reading.steps else []),
                *(f"note: {note}" for note in branch_notes(request)),
            ]
        )
        for label, reading, request in requests
    ]
    errors = [error for _, _, request in requests for error in all_refusals(request)]
    return "\n".join(lines), [*errors, *_powered_off(facts, vms, containers)]


def _guest_system(guest: Vm | Container, facts: HostFacts, readings: Mapping[str, SystemReading]) -> SystemFacts:
    """The facts of a guest as a system: from a reading of it, else from its configuration, else from its template."""
    config = facts.guests.config(guest.guest_id)
    if config is None:
        return _system_of_template(guest.volumes)
    if config.is_windows:
        return SystemFacts(distribution="windows", version="")
    if reading := readings.get(str(guest.guest_id)):
        return facts_for_plan(reading)
    kind = config.values.get("ostype", "unmanaged") if config.kind == "lxc" else "unmanaged"
    return SystemFacts() if kind in ("debian", "ubuntu", "unmanaged") else SystemFacts(distribution=kind, version="")


def facts_for_plan(reading: SystemReading) -> SystemFacts:
    """The facts of a reading that count for a plan: without the room where driver or CUDA are already installed,
    without the kernels that lack headers where the driver is, and without the offered versions while NVIDIA's
    repository isn't configured."""
    steps = reading.steps
    return dataclasses.replace(
        reading.system,
        room=None if {"driver", "cuda"} & steps else reading.system.room,
        offered=reading.system.offered if "repository" in steps else None,
        without_headers=() if "driver" in steps else reading.system.without_headers,
    )


# Names of Proxmox VE's container templates, and of cloud images: debian-13-standard_13.1-2_amd64.tar.zst.
_TEMPLATE = re.compile(r"(?:.*/)?(debian|ubuntu)-(\d+(?:\.\d+)?)-.*\.(?:tar\.\w+|qcow2|raw|vmdk)")


def _system_of_template(volumes: list[str]) -> SystemFacts:
    """The distribution of a new guest, where the name of its image or template tells it.

    :param volumes: those that the guest is made from.
    """
    for volume in volumes:
        if match := _TEMPLATE.fullmatch(volume):
            return SystemFacts(distribution=match[1], version=match[2])
    return SystemFacts()


def _cards_of(
    name: str, container: Container, facts: HostFacts, want: Wanted, driver_cards: container_plan.DriverCards
) -> tuple[str, ...] | None:
    """Ids (vendor:device) of the cards that a container gets; None where it can't have one of them, which
    `container.plan` refuses.

    :param name: the container's, in the settings.
    """
    numbers, refused = container_plan.numbers(name, container, driver_cards, want)
    slots = [driver_cards.slots[number] for number in numbers]
    return None if refused else tuple(device.id for device in facts.display_devices if device.slot in slots)


def system_of(facts: HostFacts, cards: tuple[str, ...]) -> SystemFacts:
    """A host's facts as a system that gets a driver.

    :param cards: ids (vendor:device) of the cards that stay with the host.
    """
    base = _BASE.get(facts.pve.partition(".")[0])
    return SystemFacts(
        distribution="debian" if base else None,
        version=base,
        cards=cards,
        kernels=(facts.kernel,),
        running=facts.kernel,
    )


def of_host(name: str, stack: Nvidia, facts: HostFacts, want: Wanted, reading: SystemReading | None) -> Request:
    """The stack that a host is to have; arguments as of `driver_to_be`."""
    slots_of_vms = {gpu["slot"] for gpu in want.gpus.values() if gpu["use"] == "vm"}
    cards = tuple(device.id for device in facts.display_devices if device.slot not in slots_of_vms)
    system = system_of(facts, cards)
    if reading is not None:
        # A card's current driver says nothing about the next boot.
        system = dataclasses.replace(facts_for_plan(reading), cards=cards)
    return Request("host", stack, system, f"hosts.{name}")


def driver_to_be(
    name: str, host: Host, facts: HostFacts, want: Wanted, reading: SystemReading | None
) -> dict[str, Any]:
    """The driver that a host gets, as far as it is known before its repositories are read: `driver`, `flavour` and
    `source` of what its boot is to have (`lacking.Boot`). Empty where the settings have none.

    :param reading: of the host.
    :raises HomelabError: the driver can be had in no way.
    """
    request = of_host(name, host.nvidia, facts, want, reading) if host.nvidia else None
    if request is None or request.driver is None:
        return {}
    choice, source = choose(request), source_of(request)
    return {
        "driver": str(request.driver.version if request.driver.exact else request.driver.branch),
        "flavour": choice.flavour if choice else "",
        "source": source.source if source else "either",
    }


def _powered_off(facts: HostFacts, vms: dict[str, Vm], containers: dict[str, Container]) -> list[HomelabError]:
    """Refusals of guests that are off and stay off (`power: keep`), as their stack is installed from inside."""
    guests: dict[str, Vm | Container] = {f"vms.{name}": vm for name, vm in vms.items()}
    guests |= {f"containers.{name}": container for name, container in containers.items()}
    staying = {place: one.guest_id for place, one in guests.items() if one.nvidia and one.wanted_power == "keep"}
    return [
        HomelabError(
            wanted=f"{place} running",
            found=f"{guest} is off, and {place}.power is keep",
            why="NVIDIA's stack is installed from inside the guest",
            next=f"start it, or set {place}.power: running",
        )
        for place, guest in staying.items()
        # A guest that doesn't exist is refused elsewhere.
        if guest not in facts.guests.running and facts.guests.config(guest)
    ]


def _source_text(request: Request) -> list[str]:
    """Words for where the driver comes from; none where that isn't known, or the driver can't be had."""
    try:
        found = source_of(request)
    except HomelabError:
        return []
    if found is None:
        return []
    installer = f"NVIDIA's installer {found.run.version}" if found.run else ""
    return [
        {
            "packages": "from packages",
            "run": f"by {installer}",
            "either": f"from packages, or by {installer} where they can't be had",
        }[found.source]
    ]


def _text(request: Request) -> str:
    driver, settings = request.driver, request.settings
    choice = choose(request) if request.target != "lxc" and driver else None
    parts = [f"driver {driver.version if driver.exact else driver.branch}" if driver else "the host's driver"]
    if choice:
        parts[0] += f" ({choice.flavour} kernel modules: {choice.why})"
    parts += _source_text(request)
    parts.append(f"its {' and '.join(request.capabilities)} libraries")
    if settings.capabilities is None:
        parts[-1] += ", when it is installed or updated"
    if settings.cuda:
        parts.append(f"CUDA {settings.cuda}")
    if settings.cudnn:
        parts.append(f"cuDNN {settings.cudnn}")
    if settings.nccl:
        parts.append("NCCL")
    if settings.container_toolkit:
        parts.append(f"container toolkit for {settings.container_toolkit}")
    return ", ".join(parts)
