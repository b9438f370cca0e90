"""Reads a host and judges it with its settings: for a preview, the refusals of an `up`, the doctor, show and init.

The plan comes from facts and settings (homelab/judged/tree.py). Whether the host must be rebooted, and which files
change, its layers answer themselves, with the verb `plan`, which changes nothing; what packages there are, apt answers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from homelab.cards import remapping
from homelab.cards import values as card_values
from homelab.container import makers
from homelab.errors import HomelabError, NoPythonError, UnreachableError
from homelab.facts.guests import ledger_entry
from homelab.facts.host import HostFacts
from homelab.guest.settings import find_host_devices, refuse_programs
from homelab.host import gates, handover, plan
from homelab.host.reboot import wanted as wanted_reboot
from homelab.judged.tree import Settings, Tree, judged, judged_systems
from homelab.nvidia import judge, preview
from homelab.nvidia.plan import coming
from homelab.reading import stacks, systems
from homelab.remote import ssh
from homelab.remote.proxmox import probe
from homelab.remote.proxmox.api import OUTAGE_SECONDS
from homelab.settings import Container, Host, Vm
from homelab.vm import preview as vm_preview
from remote_scripts.both import judge_guests
from remote_scripts.both.card_values import Wanted as CardValues
from remote_scripts.both.cmdline import Wanted as Cmdline
from remote_scripts.both.handover import Wanted as Handover
from remote_scripts.both.needed import Wanted as Needed
from remote_scripts.both.read_system import Answer as SystemReading
from remote_scripts.tools.plain import of_plain

# How long a host may be out of reach, or its API, while nothing is changed, in seconds.
PATIENCE_SECONDS = 2.0
# How long a VM, which may just be starting or shutting down, has to accept a connection, in seconds.
VM_SECONDS = 5.0


def planned(
    wanted: Settings, timeout: float | None = None, facts: HostFacts | None = None, *, is_changed: bool = False
) -> Tree:
    """Reads a host and judges it. One that is refused itself, or of which nothing is to be changed, isn't asked for
    more.

    :param timeout: seconds until there is a connection; by default the host's `timeouts.connect`.
    :param facts: a reading of the host with its guests and the kernel's log, if there is one already.
    :param is_changed: `up` has a step that no reading shows, such as another setting.
    :raises UnreachableError: as of `ssh.Session.connect`.
    :raises HomelabError: the host can't be read.
    """
    host, vms, containers = wanted.host, wanted.vms, wanted.containers
    session = ssh.Session(host, timeout)
    facts = remapping.to_be(facts or session.read(guests=True, kernel_log=True), host)
    tree = replace(judged(facts, wanted), is_changed=is_changed)
    if tree.host.against or facts.handover.away:
        # While a shared card is away nothing is planned: for whatever changes, the host can't be held.
        return replace(tree, others=[*handover.refused(facts)])
    tree, sessions = _with_systems(session, tree, timeout)
    if not tree.has_steps:
        return tree
    tree = _with_stacks(session, tree, sessions)
    patience = OUTAGE_SECONDS if timeout is None else timeout
    of_api = probe.check(wanted.name, host, facts, vms, containers, patience)
    of_new, remarks = _of_new_guests(session, facts, {**vms, **containers})
    tree = replace(tree, others=[*tree.others, *of_api, *of_new], unread=[*tree.unread, *remarks])
    try:
        return tree if tree.refusals else _with_files(session, tree)
    except UnreachableError:
        raise
    except HomelabError as error:  # such as a /boot that is too full
        return replace(tree, others=[*tree.others, error])


#: The layers of NVIDIA's stack that write files.
_OF_NVIDIA = ("nvidia-packages", "toolkit")
#: What is noted of a node beside files and guests -> what `pulumi destroy` does with it.
_NOTED = {
    "mapping": "the PCI mapping {}, unless a VM has it that isn't this stack's",
    "file": "{}, which was downloaded, unless a guest uses it",
}


def undone(wanted: Settings) -> str:
    """What `pulumi destroy` undoes on a host, for people. What is there says it: nothing is wanted any more.

    :raises HomelabError: the host can't be read.
    """
    host, session = wanted.host, ssh.Session(wanted.host, PATIENCE_SECONDS)
    facts = session.read(guests=True)
    guests = vm_preview.leaving(facts, [], wanted.stack, wanted.guests)
    refused = [*gates.check_host(facts), *handover.refused(facts)]
    for guest in guests.values():
        refused += replace(guest, others_change=True).refusals
    files = _noted(host, facts)
    layers = [*_boot_layers(host, "", ""), ("card_values", CardValues()), ("handover", Handover())]
    for answer in () if refused else session.plan(layers):
        for file in answer["files"]:
            files[file["what"]] = plan.PlannedFile(**file)
    lines = [f"{wanted.name} ({host.address}), with `pulumi destroy`:"]
    for place, guest in guests.items():
        lines += vm_preview.leaving_lines(place, guest, facts, "is undone")
    lines += dict.fromkeys(f"  {file.named}" for file in files.values())
    lines += [f"  refused: {error.wanted}: {error.found}; {error.next}" for error in refused]
    return "\n".join([*lines, "  what stays: docs/undo.md; the running kernel keeps what it has until the next boot"])


def _noted(host: Host, facts: HostFacts) -> dict[str, plan.PlannedFile]:
    """What is noted on a host of files, mappings and downloads, each with what becomes of it."""
    rest = {one.path: plan.PlannedFile("removed", one.path) for one in facts.managed}
    if host.nvidia is None or host.nvidia.on_destroy == "keep":
        stay = [one.path for one in facts.managed if one.layer in _OF_NVIDIA]
        rest |= {path: plan.PlannedFile("kept", f"{path} (nvidia.onDestroy: keep)") for path in stay}
    of_node = (re.fullmatch(rf"(mapping|file)/{re.escape(host.node_name)}/(.+)", name) for name in facts.ledger)
    for noted in filter(None, of_node):
        is_back = (ledger_entry(facts.ledger, noted[0]) or {}).get("before")
        what = _NOTED[noted[1]].format(noted[2].replace("+", "/", 1))
        rest[noted[0]] = plan.PlannedFile("given back" if is_back else "removed", what)
    return rest


def _with_files(session: ssh.Session, tree: Tree) -> Tree:
    """What the host's layers say: the files that change, and whether the host must be rebooted.

    :raises HomelabError: one refuses.
    """
    host, want = tree.wanted.host, tree.want
    values: CardValues | None = card_values.wanted(want.gpus, host.gpus)
    if values and not values.values and not any(file.layer == "values" for file in tree.facts.managed):
        values = None
    driver = next((coming(stack) for stack in tree.stacks if stack.target == "host"), None)
    version, flavour = (driver.driver, driver.flavour or "") if driver else ("", "")
    to_be = wanted_reboot(host, want.words, want.functions, version, flavour)
    writing = _writing(host, want, tree.wanted.containers.values(), values, tree.facts, tree.wanted.vms)
    *written, restart = session.plan([*writing, ("reboot", to_be)])
    files = [plan.PlannedFile(**file) for answer in written for file in answer["files"]]
    return replace(tree, files=files, reboot=of_plain(plan.PlannedReboot, restart))


def _of_new_guests(
    session: ssh.Session, facts: HostFacts, guests: Mapping[str, Vm | Container]
) -> tuple[list[HomelabError], list[str]]:
    """What Proxmox VE's own code says against guests that are to be made, and who uses devices of the host that guests
    don't have yet: one refusal for each guest, with all mistakes; and a remark where that code couldn't be asked.

    :param guests: of this host, by their names in the settings.
    """
    new: dict[str, dict[str, dict[str, str]]] = {"qemu": {}, "lxc": {}}
    devices, errors = list[tuple[str, ...]](), list[HomelabError]()
    for name, guest in guests.items():
        if guest.create is None:
            continue
        options, config = guest.create.configuration(name), facts.guests.config(guest.guest_id)
        if config is None:
            new[guest.create.kind][name] = {**options, "vmid": str(guest.guest_id)}
            errors += refuse_programs(f"{'vms' if isinstance(guest, Vm) else 'containers'}.{name}", options)
        had = find_host_devices(config.values if config else {}).items()
        devices += [(name, *added) for added in sorted(find_host_devices(options).items() - had)]
    if not (any(new.values()) or devices):
        return [], []
    wanted = judge_guests.Wanted(vms=new["qemu"], containers=new["lxc"], devices=(*devices,))
    answer = judge_guests.Answer(**session.ask("read", "judge_guests", wanted))
    remarks = [f"Proxmox VE's own code couldn't be asked about new guests: {answer.unjudged}; their making judges them"]
    return errors + [
        HomelabError(
            wanted=f"{name}, made as its settings say (create)",
            found="\n        ".join(f"{key}: {' '.join(text.split())}" for key, text in sorted(of_guest.items())),
            why="the host needs it itself, or Proxmox VE's own code there doesn't take it; nothing was made",
            next="correct these keys",
        )
        for name, of_guest in answer.mistakes.items()
        if of_guest
    ], remarks if answer.unjudged else []


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
    layers = _boot_layers(host, want.iommu_words, want.vfio_words)
    if any(makers.may_have_nvidia(container, host.gpus) for container in containers):
        layers.append(("nvidia_nodes", Needed(needed=makers.any_nvidia(containers, want.gpus))))
    if containers:
        layers.append(("card_nodes", Needed(needed=any(container.has_cards for container in containers))))
    if values is not None:
        layers.append(("card_values", values))
    if host.hands_over or any(file.layer == "handover" for file in facts.managed):
        layers.append(("handover", Handover(cards=handover.cards_of(host, vms.values(), want.gpus))))
    return layers


def _boot_layers(host: Host, iommu_words: str, vfio_words: str) -> list[tuple[str, Any]]:
    """The layers of the boot, with these words on the kernel command line."""
    after = host.timeouts.rollback
    return [
        ("cmdline", Cmdline(name="iommu", words=iommu_words, rollback_after=after)),
        ("initramfs", Needed(needed=bool(vfio_words))),
        ("cmdline", Cmdline(name="vfio", words=vfio_words, rollback_after=after)),
    ]


def _with_systems(session: ssh.Session, tree: Tree, timeout: float | None) -> tuple[Tree, dict[str, ssh.Session]]:
    """The tree with what is installed for cards on the host and in its guests; and the sessions of VMs, by place."""
    facts, containers = tree.facts, tree.wanted.containers.values()
    if unread := [one for one in judge.installing(tree.wanted.host, containers) if one not in facts.systems]:
        facts = systems.read(session, facts, unread)
    sessions, of_vms, remarks, refused = _read_vms(tree.wanted.host, facts, tree.wanted.vms, timeout)
    tree = replace(tree, facts=replace(facts, systems={**facts.systems, **of_vms}), unread=remarks, others=refused)
    return replace(tree, systems=judged_systems(tree.wanted, tree.facts)), sessions


def _with_stacks(session: ssh.Session, tree: Tree, sessions: Mapping[str, ssh.Session]) -> Tree:
    """The tree with what apt says of NVIDIA's stacks, the host's first.

    :param sessions: of VMs, by place.
    :raises UnreachableError: the connection was lost.
    """
    wanted, facts, want = tree.wanted, tree.facts, tree.want
    readings = {system: one for system, one in facts.systems.items() if isinstance(one, SystemReading)}
    of_host = preview.of_host(wanted.name, wanted.host, facts, want, readings.get("host"))
    of_host = stacks.asked(session, of_host) if of_host else None
    of_guests = preview.of_guests(of_host, facts, want, wanted.vms, wanted.containers, readings)
    guests = [(sessions.get(stack.name, session), stack) for stack in of_guests]
    found = [*([of_host] if of_host else []), *stacks.asked_after(of_host, guests)]
    return replace(tree, stacks=found, systems=judged_systems(wanted, facts, found))


def _read_vms(
    host: Host, facts: HostFacts, vms: Mapping[str, Vm], timeout: float | None
) -> tuple[dict[str, ssh.Session], dict[str, SystemReading], list[str], list[HomelabError]]:
    """Reads the VMs that run and accept a login: sessions by their place in the settings; readings by id; a remark
    about each that isn't read; the refusal of one without Python. A VM that is off, or whose address its guest agent
    names, is read once it has its card.
    """
    sessions, found = dict[str, ssh.Session](), dict[str, SystemReading]()
    remarks, refused = list[str](), list[HomelabError]()
    for name, vm in vms.items():
        config = facts.guests.config(vm.vmid)
        if vm.nvidia is None or vm.ssh is None or config is None or config.is_windows:
            continue
        runs = vm.vmid in facts.guests.running
        if not runs or vm.static_address == "agent":
            remarks.append(_unread(name, "its address is its guest agent's" if runs else "it is off"))
            continue
        try:
            vm_host = host.model_copy(update={"ssh": vm.ssh, "address": vm.static_address})
            session = ssh.Session(vm_host, min(timeout or VM_SECONDS, VM_SECONDS))
            found[str(vm.vmid)] = systems.asked(session.ask)
            sessions[f"vms.{name}"] = session
        except NoPythonError as error:
            refused.append(error.retold(wanted=f"Python in vms.{name}"))
        except HomelabError as error:
            remarks.append(_unread(name, error.found))
    return sessions, found, remarks, refused


def _unread(name: str, why: str) -> str:
    return (
        f"vms.{name} was not looked into ({why}): whether NVIDIA's stack fits what is in it shows once it has its card"
    )
