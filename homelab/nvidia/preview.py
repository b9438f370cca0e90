"""What is going to be installed where, said before anything is changed: from the settings alone, then from a reading of the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from homelab.errors import HomelabError
from homelab.nvidia.checks import refusals
from homelab.nvidia.flavour import choose
from homelab.nvidia.request import Request, SystemFacts

if TYPE_CHECKING:
    from homelab.host.facts import HostFacts
    from homelab.host.plan import Wanted
    from homelab.settings import Container, Host, Settings, Vm
    from homelab.settings.nvidia import Nvidia

# Proxmox VE's major version -> its base's (https://pve.proxmox.com/wiki/FAQ).
_BASE = {"8": "12", "9": "13"}


def from_settings(settings: Settings) -> list[HomelabError]:
    """What can't work whatever is found: a card's id and a driver that doesn't know it, a container that wants another driver than
    its host gets.
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
            system = SystemFacts(
                host_driver=_contrary(container.nvidia, settings.hosts[settings.candidates(container)[0]].nvidia)
            )
            errors += refusals(Request("lxc", container.nvidia, system, f"containers.{name}"))
    return errors


def _matches(host: Host, *uses: str) -> tuple[str, ...] | None:
    """The ids of a host's cards, as far as the settings name some; more may be there."""
    return tuple(gpu.match for gpu in host.gpus.values() if gpu.use in uses and gpu.match) or None


def _contrary(container: Nvidia, host: Nvidia | None) -> str | None:
    """The host's driver, where the container's settings can't mean the same."""
    wanted, comes = container.driver, host.driver if host else None
    if wanted is None or comes is None:
        return None
    return None if wanted.startswith(comes) or comes.startswith(wanted) else comes


def describe(
    name: str, host: Host, facts: HostFacts, want: Wanted, vms: dict[str, Vm], containers: dict[str, Container]
) -> tuple[str, list[HomelabError]]:
    """The plan's lines for a host and its guests, and what stands against it.

    :param name: the host's in the settings.
    :param want: of the same reading.
    :param vms: its VMs, by their names in the settings.
    :param containers: its containers, by theirs.
    """
    requests: list[tuple[str, Request]] = []
    if host.nvidia:
        requests.append(("the host", _of_host(name, host.nvidia, facts, want)))
    for guest, vm in vms.items():
        if vm.nvidia:
            slots = [want.gpus[use.gpu]["slot"] for use in vm.gpus if use.gpu in want.gpus]
            cards = tuple(device.id for device in facts.display_devices if device.slot in slots)
            requests.append(
                (f"VM {vm.vmid} ({guest})", Request("vm", vm.nvidia, SystemFacts(cards=cards), f"vms.{guest}"))
            )
    for guest, container in containers.items():
        if container.nvidia:
            # Where this program changes the host's driver, what is loaded now says nothing.
            system = SystemFacts(host_driver=None if host.nvidia else facts.nvidia.version or None)
            label = f"container {container.ctid} ({guest})"
            requests.append((label, Request("lxc", container.nvidia, system, f"containers.{guest}")))
    lines = [f"  NVIDIA's stack in {label}: {_text(request)}" for label, request in requests]
    errors = [error for _, request in requests for error in refusals(request)]
    return "\n".join(lines), [*errors, *_off(facts, vms, containers)]


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


def _of_host(name: str, stack: Nvidia, facts: HostFacts, want: Wanted) -> Request:
    passed = {gpu["slot"] for gpu in want.gpus.values() if gpu["use"] == "vm"}
    staying = tuple(device.id for device in facts.display_devices if device.slot not in passed)
    return Request("host", stack, system_of(facts, staying), f"hosts.{name}")


def driver_to_be(name: str, host: Host, facts: HostFacts, want: Wanted) -> dict[str, str]:
    """The driver that a host is going to have, as far as it is known before its repositories are asked: `driver`, `flavour` and
    `source` of `scripts.reboot_host`. Empty where the settings have none."""
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
