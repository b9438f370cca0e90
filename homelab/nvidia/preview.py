"""What is going to be installed where, said before anything is changed: from the settings alone, then from a reading of
the host."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from homelab.container import plan as container_plan
from homelab.errors import HomelabError
from homelab.nvidia.checks import refusals
from homelab.nvidia.flavour import choose
from homelab.nvidia.plan import against
from homelab.nvidia.request import Request, SystemFacts
from homelab.settings.download import images

if TYPE_CHECKING:
    from homelab.host.facts import GuestConfig, HostFacts
    from homelab.host.plan import Wanted
    from homelab.nvidia.reading import SystemReading
    from homelab.settings import Container, Host, Settings, Vm
    from homelab.settings.nvidia import Nvidia

# Proxmox VE's major version -> its base's (https://pve.proxmox.com/wiki/FAQ).
_BASE = {"8": "12", "9": "13"}


def from_settings(settings: Settings) -> list[HomelabError]:
    """What can't work whatever is found: a card's id and a driver that doesn't know it, a container that wants another
    driver than its host gets.
    """
    errors: list[HomelabError] = []
    for name, host in settings.hosts.items():
        if host.nvidia:
            errors += refusals(
                Request(
                    "host", host.nvidia, SystemFacts(cards=_matches(host, "lxc", "host", "shared")), f"hosts.{name}"
                )
            )
    for name, vm in settings.vms.items():
        if vm.nvidia:
            ids = [settings.hosts[settings.candidates(vm)[0]].gpus[use.gpu].match for use in vm.gpus]
            cards = tuple(one for one in ids if one)
            # With one that is known by its address alone, what else there is isn't known either.
            system = SystemFacts(cards=cards if len(cards) == len(ids) else None)
            errors += refusals(Request("vm", vm.nvidia, system, f"vms.{name}"))
    for name, container in settings.containers.items():
        if container.nvidia:
            host = settings.hosts[settings.candidates(container)[0]]
            known = [host.gpus[gpu].match for gpu in container.gpus or []]
            system = SystemFacts(
                host_driver=_followed(container.nvidia, host.nvidia.driver if host.nvidia else None),
                cards=tuple(one for one in known if one) if known and all(known) else None,
            )
            errors += refusals(Request("lxc", container.nvidia, system, f"containers.{name}"))
    return errors


def _matches(host: Host, *uses: str) -> tuple[str, ...] | None:
    """The ids of a host's cards, as far as the settings name some; more may be there."""
    return tuple(gpu.match for gpu in host.gpus.values() if gpu.use in uses and gpu.match) or None


def _followed(container: Nvidia, comes: str | None) -> str | None:
    """The host's driver as a container's request has it; None where the container's settings can mean the same, and say
    more of it.

    :param comes: branch or version that the host gets.
    """
    if comes is None or (container.driver is not None and container.driver.startswith(comes)):
        return None
    return comes


def describe(
    name: str,
    host: Host,
    facts: HostFacts,
    want: Wanted,
    vms: dict[str, Vm],
    containers: dict[str, Container],
    systems: Mapping[str, SystemReading] = MappingProxyType({}),
) -> tuple[str, list[HomelabError]]:
    """The plan's lines for a host and its guests, and what stands against it.

    :param name: the host's in the settings.
    :param want: of the same reading.
    :param vms: its VMs, by their names in the settings.
    :param containers: its containers, by theirs.
    :param systems: what was read inside: `host`, or a guest's id.
    """
    requests: list[tuple[str, Request]] = []
    comes: str | None = None
    if host.nvidia:
        request = _of_host(name, host.nvidia, facts, want, systems.get("host"))
        requests.append(("the host", request))
        if driver := request.driver:
            comes = str(driver.version if driver.exact else driver.branch)
    for guest, vm in vms.items():
        if vm.nvidia:
            slots = [want.gpus[use.gpu]["slot"] for use in vm.gpus if use.gpu in want.gpus]
            cards = tuple(device.id for device in facts.display_devices if device.slot in slots)
            inside = _inside(facts.guests.config(vm.vmid), systems.get(str(vm.vmid)), _made_from(vm.volumes))
            system = dataclasses.replace(inside, cards=cards)
            requests.append((f"VM {vm.vmid} ({guest})", Request("vm", vm.nvidia, system, f"vms.{guest}")))
    found = container_plan.cards(facts, want, vms, host.node or name, driver_comes=host.nvidia is not None)
    for guest, container in containers.items():
        if container.nvidia:
            inside = _inside(
                facts.guests.config(container.ctid), systems.get(str(container.ctid)), _made_from(container.volumes)
            )
            # Where this program changes the host's driver, what is loaded now says nothing.
            loaded = None if host.nvidia else facts.nvidia.version or None
            system = dataclasses.replace(
                inside,
                host_driver=_followed(container.nvidia, comes) if host.nvidia else loaded,
                cards=_cards_of(guest, container, facts, want, found),
            )
            label = f"container {container.ctid} ({guest})"
            requests.append((label, Request("lxc", container.nvidia, system, f"containers.{guest}")))
    lines = [f"  NVIDIA's stack in {label}: {_text(request)}" for label, request in requests]
    errors = [error for _, request in requests for error in against(request)]
    return "\n".join(lines), [*errors, *_off(facts, vms, containers)]


def _inside(config: GuestConfig | None, read: SystemReading | None, made_from: SystemFacts) -> SystemFacts:
    """What is known of a guest as a system: by a look inside, else by its configuration, else by what it is going to be
    made from.

    :param config: of one that is there.
    """
    if config is None:
        return made_from
    if config.is_windows:
        return SystemFacts(distribution="windows", version="")
    if read is not None:
        return judged(read)
    kind = config.values.get("ostype", "unmanaged") if config.kind == "lxc" else "unmanaged"
    return SystemFacts() if kind in ("debian", "ubuntu", "unmanaged") else SystemFacts(distribution=kind, version="")


def judged(read: SystemReading) -> SystemFacts:
    """A reading, as far as it says something about what is going to be installed: what is there already takes no more
    room, and as long as NVIDIA's repository isn't there, the system's own say nothing of it."""
    done = read.steps
    return dataclasses.replace(
        read.system,
        room=None if {"driver", "cuda"} & done else read.system.room,
        offered=read.system.offered if "repository" in done else None,
    )


# As Proxmox VE's templates of containers are called: debian-13-standard_13.1-2_amd64.tar.zst.
_TEMPLATE = re.compile(r"(?:.*/)?(debian|ubuntu)-(\d+(?:\.\d+)?)-.*\.tar\.\w+")


def _made_from(volumes: list[str]) -> SystemFacts:
    """The distribution of a guest that is going to be made from an image or a template whose name tells it."""
    for volume in volumes:
        file = volume.rpartition("/")[2]
        known = next((name for name, image in images().items() if image.file == file and image.user), "")
        if known:
            id_, _, version = known.partition("-")
            return SystemFacts(distribution=id_, version=version)
        if match := _TEMPLATE.fullmatch(volume):
            return SystemFacts(distribution=match[1], version=match[2])
    return SystemFacts()


def _cards_of(
    name: str, container: Container, facts: HostFacts, want: Wanted, found: container_plan.DriverCards
) -> tuple[str, ...] | None:
    """Ids (vendor:device) of the cards that a container gets; None where it can't have one of them, which is said
    elsewhere.

    :param name: of the container in the settings.
    :param found: the driver's cards.
    """
    numbers, refused = container_plan.numbers(name, container, found, want)
    slots = [found.slots[number] for number in numbers]
    return None if refused else tuple(device.id for device in facts.display_devices if device.slot in slots)


def system_of(facts: HostFacts, cards: tuple[str, ...]) -> SystemFacts:
    """A host as a system that gets a driver, as far as its reading tells.

    :param cards: ids (vendor:device) of those that stay with it.
    """
    base = _BASE.get(facts.pve.partition(".")[0])
    return SystemFacts(
        distribution="debian" if base else None,
        version=base,
        cards=cards,
        kernels=(facts.kernel,),
        running=facts.kernel,
    )


def _of_host(name: str, stack: Nvidia, facts: HostFacts, want: Wanted, read: SystemReading | None = None) -> Request:
    passed = {gpu["slot"] for gpu in want.gpus.values() if gpu["use"] == "vm"}
    staying = tuple(device.id for device in facts.display_devices if device.slot not in passed)
    system = system_of(facts, staying)
    if read is not None:
        # What has the cards now says nothing about the next start.
        system = dataclasses.replace(judged(read), cards=staying)
    return Request("host", stack, system, f"hosts.{name}")


def driver_to_be(name: str, host: Host, facts: HostFacts, want: Wanted) -> dict[str, str]:
    """The driver that a host is going to have, as far as it is known before its repositories are asked: `driver`,
    `flavour` and `source` of `scripts.reboot_host`. Empty where the settings have none."""
    request = _of_host(name, host.nvidia, facts, want) if host.nvidia else None
    if request is None or request.driver is None:
        return {}
    choice, source = choose(request), request.settings.source
    return {
        "driver": str(request.driver.version if request.driver.exact else request.driver.branch),
        "flavour": choice.flavour if choice else "",
        "source": source if source in ("packages", "run") else "either",
    }


def _off(facts: HostFacts, vms: dict[str, Vm], containers: dict[str, Container]) -> list[HomelabError]:
    """Guests that are off, and stay so: nothing can be installed in them."""
    guests: dict[str, tuple[int, bool]] = {
        f"vms.{name}": (vm.vmid, vm.vmid in facts.guests.running)
        for name, vm in vms.items()
        if vm.nvidia and vm.wanted_power == "keep"
    }
    guests |= {
        f"containers.{name}": (one.ctid, one.ctid in facts.guests.running)
        for name, one in containers.items()
        if one.nvidia and one.wanted_power == "keep"
    }
    return [
        HomelabError(
            wanted=f"{place} running",
            found=f"{vmid} is off, and {place}.power is keep",
            why="NVIDIA's stack is installed from inside the guest",
            next=f"start it, or set {place}.power: running",
        )
        for place, (vmid, runs) in guests.items()
        # One that isn't there is another error's.
        if not runs and facts.guests.config(vmid)
    ]


def _text(request: Request) -> str:
    driver, settings = request.driver, request.settings
    choice = choose(request) if request.target != "lxc" and driver else None
    parts = [f"driver {driver.version if driver.exact else driver.branch}" if driver else "the host's driver"]
    if choice:
        parts[0] += f" ({choice.flavour} kernel modules: {choice.why})"
    parts.append(f"its libraries for {' and '.join(request.capabilities)}")
    if settings.capabilities is None:
        parts[-1] += " where it is installed or updated"
    if settings.cuda:
        parts.append(f"CUDA {settings.cuda}")
    if settings.cudnn:
        parts.append(f"cuDNN {settings.cudnn}")
    if settings.nccl:
        parts.append("NCCL")
    if settings.container_toolkit:
        parts.append(f"container toolkit for {settings.container_toolkit}")
    return ", ".join(parts)
