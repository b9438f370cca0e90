"""The plan for containers, from a reading of the host: which of the driver's cards each gets, and what stands against
it.

Pure functions, so that a preview and an `up` refuse the same things with the same words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from homelab.container import engines, libraries, makers, others
from homelab.errors import HomelabError, unlocking
from homelab.host import gates, released
from homelab.host.classes import NVIDIA
from homelab.host.facts import CardUser, GuestConfig, HostFacts, bound_by_word
from homelab.host.plan import Wanted
from homelab.settings import Container, Vm
from homelab.shapes import SharedCard
from homelab.vm.plan import copy_first


@dataclass(frozen=True)
class DriverCards:
    """What the driver has, or is going to have once the cards for VMs are bound: number of /dev/nvidiaN -> slot.

    `predicted`: a reboot comes first, at which the driver counts its cards anew. `taken`: slot -> who has it instead.
    """

    slots: dict[int, str]
    predicted: bool
    taken: dict[str, str]
    # slot -> the card as messages call it.
    called: dict[str, str]

    @property
    def text(self) -> str:
        """For a message."""
        there = (
            ", ".join(f"{number} ({self.called.get(slot, slot)})" for number, slot in sorted(self.slots.items()))
            or "none"
        )
        taken = "; ".join(f"{self.called.get(slot, slot)} {who}" for slot, who in sorted(self.taken.items()))
        after = " at its next start" if self.predicted else ""
        return f"the driver has{after} {there}" + (f"; {taken}" if taken else "")


def cards(facts: HostFacts, want: Wanted, vms: dict[str, Vm], node: str, *, driver_comes: bool = False) -> DriverCards:
    """The host's NVIDIA cards.

    :param vms: those of this host, by name.
    :param node: its name in Proxmox VE.
    :param driver_comes: whether this program installs the host's driver, before a container needs it.
    """
    holders = {use.gpu: f"vms.{name}" for name, vm in vms.items() for use in vm.gpus}
    graphics = [device for device in facts.display_devices if device.vendor == NVIDIA]
    taken: dict[str, str] = {}
    for gpu, about in want.gpus.items():
        if about["use"] == "vm":
            who = f"which {holders[gpu]} has" if gpu in holders else "which is for a VM (use: vm)"
            taken[about["slot"]] = f"is gpus.{gpu}, {who}"
    names = {about["slot"]: gpu for gpu, about in want.gpus.items()}
    for device in graphics:
        if device.slot in taken:
            continue
        name = f"gpus.{names[device.slot]}, " if device.slot in names else ""
        having = facts.users_of(device.slot, node)
        users = ", ".join(str(user) for user in having)
        if device.driver == "vfio-pci" and not _released(device.slot, facts, want):
            taken[device.slot] = f"is {name}bound to vfio-pci" + (f" for {users}" if users else "")
        elif users and device.slot not in want_slots(want, "shared") and not _was_shared(device.slot, having, facts):
            taken[device.slot] = f"is {name}given to {users}"
    called = {device.slot: facts.card(device.slot) for device in graphics}
    now = {address.rpartition(".")[0]: number for address, number in facts.nvidia_minors.items()}
    staying = [device.slot for device in graphics if device.slot not in taken]
    leaves = any(slot in now for slot in want_slots(want, "vm"))
    released = any(_released(slot, facts, want) for slot in staying)
    comes = any(slot not in now for slot in staying) and (driver_comes or released)
    if not leaves and not comes:
        return DriverCards({number: slot for slot, number in now.items() if slot not in taken}, False, taken, called)
    # Which number a card gets at the next boot is the driver's matter; it counts them as it finds them.
    order = sorted(staying, key=lambda slot: (slot not in now, now.get(slot, 0), slot))
    return DriverCards(dict(enumerate(order)), True, taken, called)


def _was_shared(slot: str, having: list[CardUser], facts: HostFacts) -> bool:
    """Is it still handed over, with the host now, and named by VMs alone that this program gave it and that are off? It
    is taken out of them by this run, whose settings have it for containers alone; until then their hookscript keeps
    it."""
    return facts.handover.enabled and all(not one.running and facts.given_by_us(slot, one.vmid) for one in having)


def want_slots(want: Wanted, use: str) -> list[str]:
    """The slots of the cards that the settings give that use."""
    return [about["slot"] for about in want.gpus.values() if about["use"] == use]


def _released(slot: str, facts: HostFacts, want: Wanted) -> bool:
    """Do the settings give the card back to the host's driver, and has this program bound it to vfio-pci, or does it
    take it from who has?"""
    ours = {address.rpartition(".")[0] for address in bound_by_word(facts.cmdline.running)}
    taken = released.WORD in want.vfio_words and any(map(facts.kept_by_hand, facts.functions(slot)))
    stays = slot in (*want_slots(want, "lxc"), *want_slots(want, "host"), *want_slots(want, "shared"))
    return stays and (slot in ours or taken)


def numbers(name: str, container: Container, found: DriverCards, want: Wanted) -> tuple[list[int], list[HomelabError]]:
    """The numbers of the cards of NVIDIA's that a container gets, ascending, and which of them it can't have."""
    if container.numbers == "all":
        return sorted(found.slots), [] if found.slots else [_refused(name, "all cards of the driver", "", found)]
    by_slot = {slot: number for number, slot in found.slots.items()}
    chosen: list[int] = []
    errors: list[HomelabError] = []
    elsewhere = makers.others(container, want.gpus)
    for gpu in container.gpus or []:
        slot = want.gpus[gpu]["slot"] if gpu in want.gpus else ""
        if gpu in elsewhere:
            continue
        if slot in by_slot:
            chosen.append(by_slot[slot])
        else:
            about = (
                f"gpus.{gpu} ({found.called.get(slot, slot)}) isn't one of NVIDIA's, or its driver hasn't taken it; "
            )
            errors.append(_refused(name, f"gpus.{gpu}", about, found))
    for number in container.numbers or []:
        if number in found.slots:
            chosen.append(number)
        else:
            errors.append(_refused(name, f"card {number} (gpuAssignment)", "", found))
    return sorted(chosen), errors


def _refused(name: str, what: str, about: str, found: DriverCards) -> HomelabError:
    return HomelabError(
        wanted=f"{what} for containers.{name}",
        found=f"{about}{found.text}",
        why="a container gets a card from the host's driver: it can't have a card that isn't there, is on vfio-pci "
        "or is a VM's",
        next="see `nvidia-smi -L` on the host; correct gpuAssignment, or name cards with use: lxc in gpus",
    )


def functions(slots: list[str], facts: HostFacts) -> list[str]:
    """Addresses of the cards' display functions: by them their nodes in /dev/dri are known."""
    return [device.address for device in facts.display_devices if device.slot in slots]


def check(
    name: str, container: Container, facts: HostFacts, found: DriverCards, want: Wanted
) -> tuple[list[int], list[HomelabError]]:
    """The numbers of a container's cards of NVIDIA's, and every reason not to give them to it."""
    errors = [*gates.readable(facts), *_container(name, container, facts)]
    errors += engines.refusals(name, container, facts) if not errors else []
    elsewhere = makers.others(container, want.gpus)
    wanted = container.numbers if container.gpus is None else [gpu for gpu in container.gpus if gpu not in elsewhere]
    if not wanted:
        return [], errors
    if facts.nvidia.trouble and facts.nvidia.trouble[0] and not found.predicted:
        cause, mends = facts.nvidia.trouble
        errors.append(_no_driver(name, "NVIDIA's driver loaded on the host", cause, mends))
        return [], errors
    if facts.nvidia.uvm_trouble and facts.nvidia.uvm_trouble[0] and not facts.nvidia.trouble[0]:
        cause, mends = facts.nvidia.uvm_trouble
        errors.append(_no_driver(name, "/dev/nvidia-uvm, of the module nvidia-uvm, on the host", cause, mends))
    chosen, refused = numbers(name, container, found, want)
    return chosen, errors + refused


def _no_driver(name: str, wanted: str, cause: str, mends: str) -> HomelabError:
    return HomelabError(
        wanted=f"{wanted}, for containers.{name}",
        found=cause,
        why="a container shares a card with the host's driver: without it there are no device nodes to give it",
        next=mends,
    )


def _container(name: str, container: Container, facts: HostFacts) -> list[HomelabError]:
    """What stands against changing the container, whatever it gets."""
    config = facts.guests.config(container.ctid)
    if config is None:
        away = facts.cluster.elsewhere(f"container {container.ctid}, as containers.{name}", container.ctid)
        if away is not None:
            return [away]
        return [] if container.create else [_missing(name, container, facts)]
    label = f"container {container.ctid}, as containers.{name}"
    if config.kind != "lxc":
        return [
            HomelabError(
                wanted=label,
                found=f"{container.ctid} is a virtual machine ({config.values.get('name', 'without a name')})",
                why="cards are shared with containers; a VM gets one whole",
                next=f"correct containers.{name}.ctid, or describe the VM under homelab:vms",
            )
        ]
    if lock := config.values.get("lock"):
        return [
            HomelabError(
                wanted=f"{label}, free to be changed",
                found=f"it is locked: {lock}",
                why="something else works on it now (a backup, a snapshot, a migration)",
                next=f"{unlocking('lxc', container.ctid, lock)}; then run `pulumi up` again",
            )
        ]
    if config.values.get("template") == "1":
        return [
            HomelabError(
                wanted=label,
                found="it is a template",
                why="a template never runs",
                next=f"name a container in containers.{name}.ctid",
            )
        ]
    return []


def _missing(name: str, container: Container, facts: HostFacts) -> HomelabError:
    there = [_named(config) for config in facts.guests.configs if config.kind == "lxc"]
    return HomelabError(
        wanted=f"container {container.ctid}, to be adopted as containers.{name}",
        found=f"no such container on the host; there are: {', '.join(there) or 'none'}",
        why="cards can't be given to a container that isn't there",
        next=f"correct containers.{name}.ctid, or describe the container under containers.{name}.create",
    )


def _named(config: GuestConfig) -> str:
    return f"{config.id} ({config.values.get('hostname', '')})"


def describe(
    facts: HostFacts,
    want: Wanted,
    containers: dict[str, Container],
    vms: dict[str, Vm],
    node: str,
    *,
    driver_comes: bool = False,
) -> tuple[str, list[HomelabError]]:
    """The plan's lines, and what stands against it.

    :param containers: those of this host, by name.
    :param vms: those of this host, by name.
    :param node: the host's name in Proxmox VE.
    :param driver_comes: as of `cards`.
    """
    lines: list[str] = []
    errors: list[HomelabError] = []
    found = cards(facts, want, vms, node, driver_comes=driver_comes)
    for name, container in containers.items():
        chosen, refused = check(name, container, facts, found, want)
        shared, closed = others.shared(name, container, facts, want.gpus, node, after_boot=True)
        errors += [*refused, *closed, *libraries.refusals(name, container, facts, want.gpus)]
        devices = "; ".join([*([_devices(chosen)] if chosen else []), *others.lines(facts, shared)]) or "no card"
        config = facts.guests.config(container.ctid)
        if config is None:
            lines.append(f"  container {container.ctid} ({name}): created with {devices}")
        else:
            runs = "running" if container.ctid in facts.guests.running else "off"
            lines.append(f"  container {_named(config)}, {runs}: {devices}")
            lines += [] if _is_given(container, facts, chosen, shared) else copy_first(container)
        if container.libraries:
            lines.append(f"    packages inside for its cards: {', '.join(container.libraries)}")
        lines += [f"    note: {said}" for said in others.remarks(facts, shared)]
    return "\n".join(lines), errors


def _is_given(container: Container, facts: HostFacts, chosen: list[int], shared: Mapping[str, SharedCard]) -> bool:
    """Has the container's configuration what it is to have, from an earlier run?"""
    given = next((one for one in facts.containers if one.id == container.ctid and not one.drift), None)
    wanted = ([str(number) for number in chosen], makers.words(shared))
    return given is not None and wanted == (given.minors.split(), given.cards)


def _devices(chosen: list[int]) -> str:
    return ", ".join(f"/dev/nvidia{number}" for number in chosen) + ", nvidiactl, nvidia-uvm"
