"""A host read, judged and planned over one connection: what a preview shows, and what an `up` refuses or goes by.

What is to be is decided from facts and settings (`plan.wanted`). What that means on the host (whether it must be
rebooted, which files change) the very scripts say that do it, with the verb `plan`, which changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from homelab.container import makers
from homelab.container import plan as container_plan
from homelab.errors import HomelabError, UnreachableError, raise_all
from homelab.host import card_values, gates, ha, handover, plan, remapping
from homelab.host.facts import HostFacts
from homelab.nvidia import preview, reading
from homelab.nvidia.compatibility import load
from homelab.nvidia.reading import SystemReading
from homelab.remote import scripts, ssh
from homelab.remote.nvidia_steps import in_container, read_system
from homelab.remote.proxmox import probe
from homelab.remote.proxmox.api import OUTAGE_SECONDS
from homelab.settings import Container, Host, Vm
from homelab.vm import plan as vm_plan

# How long one look into a system may take, and how long a VM that may be on its way up or down has for its connection,
# in seconds.
READING_SECONDS = 60.0
VM_SECONDS = 5.0


@dataclass(frozen=True)
class Planned:
    """A reading, what is wanted on that host, the files that are going to be written, changed or given back for it, and
    whether it is going to be rebooted. `guests`: the plan's lines for guests and NVIDIA's stacks."""

    facts: HostFacts
    want: plan.Wanted
    files: list[plan.PlannedFile]
    reboot: plan.PlannedReboot
    guests: str


async def planned(
    name: str,
    host: Host,
    vms: dict[str, Vm],
    containers: dict[str, Container],
    timeout: float | None = None,
) -> Planned:
    """Reads `host` and asks its scripts.

    :param name: the host's in the settings.
    :param vms: its VMs, by their names in the settings.
    :param containers: its containers, by theirs.
    :param timeout: seconds until there is a connection; by default the host's `timeouts.connect`.
    :raises UnreachableError: as of `ssh.connect`.
    :raises HomelabError: whatever stands against the change, all of it at once.
    """
    async with ssh.connect(host, timeout) as session:
        facts = remapping.to_be(await session.read(guests=True), host)
        want = plan.wanted(facts, host)
        # What would stop the way to a VM or a container is found before the host is rebooted for it.
        machines, errors = vm_plan.describe(name, facts, host, want, vms)
        shared, refused = container_plan.describe(
            facts, want, containers, vms, host.node or name, driver_comes=host.nvidia is not None
        )
        inside = [one.ctid for one in containers.values() if one.nvidia is not None]
        systems, unread = await look_inside(session, facts, inside, host=host.nvidia is not None)
        seen, dark = await _vms(host, facts, vms, timeout)
        stacks, impossible = _stacks(name, host, facts, want, vms, containers, systems | seen)
        impossible += unread
        # In a thread: requests knows nothing of this loop.
        patience = OUTAGE_SECONDS if timeout is None else timeout
        closed = await asyncio.to_thread(probe.check, name, host, facts, want, vms, containers, patience)
        under_ha = ha.refused_under_ha(facts, host, vms.values(), containers.values())
        # Before the restart, adopted VMs get the hookscript (CardHandover); a created one gets it afterwards (GpuVm).
        hooked = handover.takers(host, {guest: vm for guest, vm in vms.items() if vm.create is None})
        slots = {gpu: about["slot"] for gpu, about in want.gpus.items()}
        in_turn = [*handover.refused(facts), *gates.without_hook(facts, host, slots, hooked)]
        raise_all([*in_turn, *under_ha, *errors, *refused, *impossible, *closed])
        values: list[str] | None = card_values.lines(want.gpus, host.gpus)
        if not values and not any(file.layer == "values" for file in facts.managed):
            values = None
        files = await _files(session, host, want, containers.values(), values, facts, vms)
        driver: dict[str, Any] = {}
        if host.nvidia:
            driver = preview.driver_to_be(name, host, facts, want)
        script = scripts.reboot_host(
            host.reboot,
            want.words,
            sorted(want.functions),
            host.timeouts.rollback,
            keep_quorum=not host.allow_quorum_loss,
            guests=host.guests_at_reboot,
            **driver,
        )
        reboot = plan.PlannedReboot(**scripts.answer(await session.run("plan", script, ssh.SCRIPT_SECONDS)))
        if reboot.reboot != "no":
            raise_all(ha.refused_for_restart(facts, host, vms.values()))
    said = "\n".join(f"  note: {one}" for one in (*ha.remarks_under_ha(facts, host, vms.values()), *dark))
    return Planned(facts, want, files, reboot, "\n".join(part for part in (machines, shared, stacks, said) if part))


async def _files(
    session: ssh.Session,
    host: Host,
    want: plan.Wanted,
    containers: Collection[Container],
    values: list[str] | None,
    facts: HostFacts,
    vms: Mapping[str, Vm],
) -> list[plan.PlannedFile]:
    """What the layers' scripts would change, in their order.

    :param containers: of this host.
    :param values: of cards (`homelab.host.card_values`); None: there are none, and were none.
    :param facts: the reading that `want` is made from.
    :param vms: of this host.
    :raises HomelabError: a script's own refusal, such as of a /boot that is too full.
    """
    layers = [
        scripts.iommu_cmdline(want.iommu_words),
        scripts.vfio_initramfs(bool(want.vfio_words)),
        scripts.vfio_cmdline(want.vfio_words),
    ]
    nvidia = makers.any_nvidia(containers, want.gpus)
    layers += [scripts.nvidia_nodes(needed=nvidia)] if any(one.may_have_nvidia(host.gpus) for one in containers) else []
    layers += [scripts.card_nodes(any(one.has_cards for one in containers))] if containers else []
    layers += [scripts.card_values(values)] if values is not None else []
    files = []
    if host.hands_over or any(file.layer == "handover" for file in facts.managed):
        layers.append(scripts.handover(handover.lines_of(host, vms, want.gpus)))
    for script in layers:
        files += scripts.answer(await session.run("plan", script))["files"]
    return [plan.PlannedFile(**file) for file in files]


async def look_inside(
    session: ssh.Session, facts: HostFacts, containers: Iterable[int], *, host: bool
) -> tuple[dict[str, SystemReading], list[HomelabError]]:
    """The host and its containers as systems that NVIDIA's stack is for, as far as they can be looked into now: `host`,
    or an id -> what is there.

    :param containers: their ids.
    :param host: is the host looked at, too?
    :returns: also what keeps a container from being looked into: it would keep the stack from being installed there,
        too.
    :raises UnreachableError: the host went away meanwhile.
    """
    found: dict[str, SystemReading] = {}
    refused: list[HomelabError] = []
    if host:
        found["host"] = await _read(session, _reading_script())
    for ctid in containers:
        config = facts.guests.config(ctid)
        if config is None or config.kind != "lxc" or ctid not in facts.guests.running or "lock" in config.values:
            continue
        # Without a bash inside nobody answers; that there is no stack for others is said by their configuration.
        if config.values.get("ostype", "unmanaged") not in ("debian", "ubuntu", "unmanaged"):
            continue
        try:
            found[str(ctid)] = await _read(session, in_container(ctid, _reading_script()))
        except UnreachableError:
            raise
        except HomelabError as error:
            refused.append(error)
    return found, refused


async def _vms(
    host: Host, facts: HostFacts, vms: Mapping[str, Vm], timeout: float | None
) -> tuple[dict[str, SystemReading], list[str]]:
    """What is in the VMs that run and let us in: id -> that; and a remark about each that doesn't. One that is off, or
    whose guest agent names the address, is looked into once it has its card."""
    found: dict[str, SystemReading] = {}
    dark: list[str] = []
    for name, vm in vms.items():
        config = facts.guests.config(vm.vmid)
        runs = config is not None and not config.is_windows and vm.vmid in facts.guests.running
        if not runs or vm.nvidia is None or vm.ssh is None or vm.static_address == "agent":
            continue
        try:
            reached = host.model_copy(update={"ssh": vm.ssh, "address": vm.static_address})
            found[str(vm.vmid)] = await read_vm(reached, timeout)
        except HomelabError as error:
            dark.append(
                f"vms.{name} was not looked into ({error.found}): whether NVIDIA's stack fits what is in it shows "
                "once it has its card"
            )
    return found, dark


async def read_vm(reached: Host, timeout: float | None = None) -> SystemReading:
    """What is in a VM.

    :param reached: how SSH gets there.
    :param timeout: seconds until there is a connection.
    :raises HomelabError: it doesn't answer, lets nobody in, or has no bash, as Windows.
    """
    async with ssh.connect(reached, min(timeout or VM_SECONDS, VM_SECONDS)) as inside:
        return await _read(inside, _reading_script())


def _reading_script() -> str:
    """What is read inside; where NVIDIA's repository is there already, it says itself what it offers."""
    return read_system(load().cuda_packages)


async def _read(session: ssh.Session, script: str) -> SystemReading:
    return reading.parse(await session.run("read_system", script, READING_SECONDS))


def _stacks(
    name: str,
    host: Host,
    facts: HostFacts,
    want: plan.Wanted,
    vms: dict[str, Vm],
    containers: dict[str, Container],
    systems: Mapping[str, SystemReading],
) -> tuple[str, list[HomelabError]]:
    """The plan of NVIDIA's stacks, and what stands against it; its data is read only where there is one."""
    stacks: list[Any] = [host.nvidia, *(vm.nvidia for vm in vms.values()), *(one.nvidia for one in containers.values())]
    if not any(stacks):
        return "", []
    return preview.describe(name, host, facts, want, vms, containers, systems)
