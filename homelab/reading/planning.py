"""Reads a host, checks the settings against it and makes its plan: for a preview, and for the refusals of an `up`.

The plan comes from facts and settings (`plan.wanted`). Whether the host must be rebooted, and which files change, its
layers answer themselves, with the verb `plan`, which changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from homelab.cards import remapping
from homelab.cards import values as card_values
from homelab.container import makers
from homelab.container import plan as container_plan
from homelab.errors import HomelabError, NoPythonError, UnreachableError, raise_all
from homelab.facts.host import HostFacts
from homelab.host import ha, handover, holder_gates, plan
from homelab.host.judge import judge_host
from homelab.host.reboot import wanted as wanted_reboot
from homelab.nvidia import preview, reading
from homelab.nvidia.reading import SystemReading
from homelab.reading import stacks, systems
from homelab.remote import ssh
from homelab.remote.proxmox import probe
from homelab.remote.proxmox.api import OUTAGE_SECONDS
from homelab.settings import Container, Host, Vm
from homelab.vm import preview as vm_preview
from remote_scripts.both import judge_guests, read_system
from remote_scripts.both.card_values import Wanted as CardValues
from remote_scripts.both.cmdline import Wanted as Cmdline
from remote_scripts.both.handover import Wanted as Handover
from remote_scripts.both.needed import Wanted as Needed
from remote_scripts.tools.plain import of_plain

# How long a host may be out of reach, or its API, while nothing is changed, in seconds.
PATIENCE_SECONDS = 2.0
# How long a VM, which may just be starting or shutting down, has to accept a connection, in seconds.
VM_SECONDS = 5.0


@dataclass(frozen=True)
class Planned:
    """A host's plan. `facts`: the reading it is made from; `remarks`: on the host, a sentence each; `files`: those that
    will be written, changed or given back; `reboot`: whether the host will be rebooted; `guests`: text about guests
    and NVIDIA's stacks, several lines; `unread`: VMs that couldn't be looked into, a sentence each.
    """

    facts: HostFacts
    want: plan.Wanted
    remarks: list[str]
    files: list[plan.PlannedFile]
    reboot: plan.PlannedReboot
    guests: str
    unread: list[str]

    def text(self, name: str, host: Host, follows: str = "") -> str:
        """The whole plan for people; arguments as of `plan.describe`."""
        described = plan.describe(name, self.facts, host, self.want, self.reboot, self.files, follows, self.remarks)
        return "\n".join(part for part in (described, self.guests) if part)


def planned(
    name: str,
    host: Host,
    vms: dict[str, Vm],
    containers: dict[str, Container],
    timeout: float | None = None,
    stack: str = "",
    facts: HostFacts | None = None,
) -> Planned:
    """Reads `host` and plans it.

    :param name: the host's in the settings.
    :param vms: its VMs, by their names in the settings.
    :param containers: its containers, by their names in the settings.
    :param timeout: seconds until there is a connection; by default the host's `timeouts.connect`.
    :param stack: PROJECT/STACK, whose guests may lose what they have from it.
    :param facts: a reading of the host with its guests and the kernel's log, if there is one already.
    :raises UnreachableError: as of `ssh.Session.connect`.
    :raises HomelabError: all refusals at once.
    """
    session = ssh.Session(host, timeout)
    facts = remapping.to_be(facts or session.read(guests=True, kernel_log=True), host)
    of_host = judge_host(facts, host, vms.values())
    raise_all(of_host.refusals or handover.refused(facts))
    want = of_host.want
    # Refusals of VMs and containers come before the host is rebooted for them.
    vm_lines, vm_errors = vm_preview.describe(facts, host, want, vms, stack)
    container_lines, container_errors = container_plan.describe(facts, host, want, containers, vms, stack)
    facts, nvidia, vm_remarks, stack_errors = _nvidia(session, name, host, facts, want, vms, containers, timeout)
    patience = OUTAGE_SECONDS if timeout is None else timeout
    api_errors = probe.check(name, host, facts, vms, containers, patience)
    ha_errors = ha.refused_under_ha(facts, host, vms.values(), containers.values())
    # Before the restart, adopted VMs get the hookscript (CardHandover); a created one gets it afterwards (GpuVm).
    vms_with_hook = handover.takers(host, [vm for vm in vms.values() if vm.create is None])
    slots = {gpu: card["slot"] for gpu, card in want.gpus.items()}
    handover_errors = holder_gates.without_hook(facts, host, slots, vms_with_hook)
    made_errors, made_remarks = _of_new_guests(session, facts, {**vms, **containers})
    raise_all([*handover_errors, *ha_errors, *vm_errors, *container_errors, *stack_errors, *api_errors, *made_errors])
    values: CardValues | None = card_values.wanted(want.gpus, host.gpus)
    if values and not values.values and not any(file.layer == "values" for file in facts.managed):
        values = None
    driver = next((stack.driver_to_be for stack in nvidia if stack.request.target == "host"), {})
    to_be = wanted_reboot(host, want.words, want.functions, driver.get("driver", ""), driver.get("flavour", ""))
    writing = _writing(host, want, containers.values(), values, facts, vms)
    *written, restart = session.plan([*writing, ("reboot", to_be)])
    files = [plan.PlannedFile(**file) for answer in written for file in answer["files"]]
    reboot = of_plain(plan.PlannedReboot, restart)
    remark_lines = "\n".join(f"  note: {remark}" for remark in (*vm_remarks, *made_remarks))
    stack_lines = [stack.text for stack in nvidia]
    guests = "\n".join(part for part in (vm_lines, container_lines, *stack_lines, remark_lines) if part)
    return Planned(facts, want, [*of_host.remarks, *of_host.met], files, reboot, guests, vm_remarks)


def _of_new_guests(
    session: ssh.Session, facts: HostFacts, guests: Mapping[str, Vm | Container]
) -> tuple[list[HomelabError], list[str]]:
    """What Proxmox VE's own code says against guests that are to be made: one refusal for each, with all mistakes; and
    a remark where it couldn't be asked.

    :param guests: of this host, by their names in the settings.
    """
    new: dict[str, dict[str, dict[str, str]]] = {"qemu": {}, "lxc": {}}
    for name, guest in guests.items():
        if guest.create and facts.guests.config(guest.guest_id) is None:
            options = {**guest.create.configuration(name), "vmid": str(guest.guest_id)}
            new[guest.create.kind][name] = options
    if not any(new.values()):
        return [], []
    wanted = judge_guests.Wanted(vms=new["qemu"], containers=new["lxc"])
    answer = judge_guests.Answer(**session.ask("read", "judge_guests", wanted))
    remarks = [f"Proxmox VE's own code couldn't be asked about new guests: {answer.unjudged}; their making judges them"]
    return [
        HomelabError(
            wanted=f"{name}, made as its settings say (create)",
            found="\n        ".join(f"{key}: {' '.join(text.split())}" for key, text in sorted(of_guest.items())),
            why="Proxmox VE's own code on this host doesn't take it; nothing was made",
            next="correct these keys",
        )
        for name, of_guest in answer.mistakes.items()
        if of_guest
    ], remarks if answer.unjudged else []


def judged(
    name: str, host: Host, vms: dict[str, Vm], containers: dict[str, Container], stack: str, facts: HostFacts
) -> tuple[Planned | None, list[HomelabError]]:
    """The plan of a host, or what it refuses; arguments as of `planned`.

    :raises UnreachableError: the connection was lost.
    """
    try:
        return planned(name, host, vms, containers, PATIENCE_SECONDS, stack, facts), []
    except UnreachableError:
        raise
    except HomelabError as error:
        return None, [error]


def _writing(
    host: Host,
    want: plan.Wanted,
    containers: Collection[Container],
    values: CardValues | None,
    facts: HostFacts,
    vms: Mapping[str, Vm],
) -> list[tuple[str, Any]]:
    """The layers that write files, in their order, each with what is wanted of it. A plan of it may refuse, such as a
    /boot that is too full.

    :param containers: of this host.
    :param values: of cards (`homelab.cards.values`); None: there are none, and the host has none noted.
    :param facts: the reading that `want` is made from.
    :param vms: of this host.
    """
    after = host.timeouts.rollback
    layers: list[tuple[str, Any]] = [
        ("cmdline", Cmdline(name="iommu", words=want.iommu_words, rollback_after=after)),
        ("initramfs", Needed(needed=bool(want.vfio_words))),
        ("cmdline", Cmdline(name="vfio", words=want.vfio_words, rollback_after=after)),
    ]
    if any(makers.may_have_nvidia(container, host.gpus) for container in containers):
        layers.append(("nvidia_nodes", Needed(needed=makers.any_nvidia(containers, want.gpus))))
    if containers:
        layers.append(("card_nodes", Needed(needed=any(container.has_cards for container in containers))))
    if values is not None:
        layers.append(("card_values", values))
    if host.hands_over or any(file.layer == "handover" for file in facts.managed):
        layers.append(("handover", Handover(cards=handover.cards_of(host, vms.values(), want.gpus))))
    return layers


def _nvidia(
    session: ssh.Session,
    name: str,
    host: Host,
    facts: HostFacts,
    want: plan.Wanted,
    vms: dict[str, Vm],
    containers: dict[str, Container],
    timeout: float | None,
) -> tuple[HostFacts, list[preview.Stack], list[str], list[HomelabError]]:
    """The NVIDIA stacks of a host and its guests, with what apt says on each system; arguments as of `planned`.

    :param want: the host's plan from the same reading.
    :returns: the facts, with what was read of the systems; the stacks, the host's first; remarks on VMs; all refusals.
    """
    inside = [str(container.ctid) for container in containers.values() if container.nvidia]
    if ids := [*(["host"] if host.nvidia else []), *inside]:
        facts = systems.read(session, facts, ids)
    elif not any(vm.nvidia for vm in vms.values()):
        return facts, [], [], []
    errors = [one for one in facts.systems.values() if isinstance(one, HomelabError)]
    readings = {system: one for system, one in facts.systems.items() if isinstance(one, SystemReading)}
    vm_sessions, of_vms, remarks, refused = _read_vms(host, facts, vms, timeout)
    of_host = preview.of_host(name, host, facts, want, readings.get("host"))
    of_host = stacks.asked(session, of_host) if of_host else None
    of_guests = preview.of_guests(of_host, facts, want, vms, containers, readings | of_vms)
    guests = [(vm_sessions.get(stack.request.name, session), stack) for stack in of_guests]
    found = [*([of_host] if of_host else []), *stacks.asked_after(of_host, guests)]
    errors += [*(error for stack in found for error in stack.errors), *preview.powered_off(facts, vms, containers)]
    return facts, found, remarks, [*errors, *refused]


def _read_vms(
    host: Host, facts: HostFacts, vms: Mapping[str, Vm], timeout: float | None
) -> tuple[dict[str, ssh.Session], dict[str, SystemReading], list[str], list[HomelabError]]:
    """Reads the VMs that run and accept a login: sessions by their place in the settings; readings by id; a remark
    about each that doesn't accept it; the refusal of one without Python. A VM that is off, or whose address its guest
    agent names, is read once it has its card.
    """
    sessions, found = dict[str, ssh.Session](), dict[str, SystemReading]()
    remarks, refused = list[str](), list[HomelabError]()
    for name, vm in vms.items():
        config = facts.guests.config(vm.vmid)
        runs = config is not None and not config.is_windows and vm.vmid in facts.guests.running
        if not runs or vm.nvidia is None or vm.ssh is None or vm.static_address == "agent":
            continue
        try:
            vm_host = host.model_copy(update={"ssh": vm.ssh, "address": vm.static_address})
            session = ssh.Session(vm_host, min(timeout or VM_SECONDS, VM_SECONDS))
            found[str(vm.vmid)] = reading.parse(session.ask("read", "read_system", read_system.Wanted()))
            sessions[f"vms.{name}"] = session
        except NoPythonError as error:
            refused.append(error.retold(wanted=f"Python in vms.{name}"))
        except HomelabError as error:
            remarks.append(
                f"vms.{name} was not looked into ({error.found}): whether NVIDIA's stack fits what is in it shows "
                "once it has its card"
            )
    return sessions, found, remarks, refused
