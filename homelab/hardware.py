"""What an owner's host shows after `up`, each acceptance criterion with its evidence: a file for an issue, from which
docs/hardware.md is made. Pure.

It names machine, cards and versions. It has no address of a network or of the PCI bus, no name of a host or guest, no
key, no serial number, no UUID: each value in it is made here, of parts that can't hold one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from homelab.contract import ContainerOutput, GpuOutput, NvidiaOutput, Outputs, VmOutput
from homelab.doctor.reading import Reading
from homelab.host import gates, plan
from homelab.host.classes import NVIDIA
from homelab.host.devices import Device
from homelab.model import Fact
from homelab.settings import Host
from homelab.show.cards import in_slot
from remote_scripts.shared.properties import overlap

# Words of the kernel's command line that are about the IOMMU, without addresses.
_WORDS = re.compile(r"(?:(?:amd|intel)_iommu|iommu|iommu\.\w+|intremap|pcie_acs_override)=[\w,.+-]+")
# Versions and models as the programs print them; anything else isn't passed on.
_VERSION = re.compile(r"[0-9][\w.+~:-]{0,60}")
_MODEL = re.compile(r"[\w ()@.,/+;:&'-]{1,120}", re.ASCII)

#: Whether an owner has tried `pulumi destroy`: `not tried`, all was as before, or something wasn't.
Undo = Literal["not tried", "all as before", "something was not as before"]


class Criterion(Fact):
    """`met`: None where it isn't known; `evidence`: what was seen, or why it isn't known."""

    criterion: str
    met: bool | None
    evidence: str


class CardReport(Fact):
    """A card. `model`: such as RTX 5090; `id`, `subsystem`: vendor:device; `use`: who the settings give it to."""

    model: str
    id: str
    subsystem: str
    use: str
    criteria: list[Criterion]


class HostReport(Fact):
    """A host. `machine`: its maker and model, its board's too; empty: not known."""

    machine: str
    processor: str
    kernel: str
    proxmox: str
    loader: str
    criteria: list[Criterion]
    cards: list[CardReport]


class HardwareReport(Fact):
    """A report. `homelab`: the program's version; `date`: YYYY-MM-DD."""

    format: Literal[1] = 1
    homelab: str
    date: str
    undo: Undo
    hosts: list[HostReport]

    def lines(self) -> list[str]:
        """It for a person: a line each."""
        return [line for host in self.hosts for line in _told(host)] + [f"undo by `pulumi destroy`: {self.undo}"]


def of_host(reading: Reading, name: str, host: Host, outputs: Outputs | None) -> HostReport:
    """A host's part.

    :param name: the host's name in the settings and the outputs.
    :param outputs: the stack's, of its last `up`; None: they can't be read, and what a guest saw isn't known.
    """
    facts = reading.facts
    slots, _ = gates.resolve(facts, host.gpus)
    seen = outputs and outputs.hosts.get(name)
    cards = [_card(reading, name, host, key, slots.get(key), outputs) for key in host.gpus]
    words = " ".join(word for word in facts.cmdline.running.split() if _WORDS.fullmatch(word))
    criteria = [
        Criterion(
            criterion="the IOMMU is on",
            met=facts.iommu.groups > 0,
            evidence=f"{facts.iommu.groups} groups; on the command line: {words or 'nothing about it'}",
        )
    ]
    if any(gpu.use == "vm" for gpu in host.gpus.values()):
        missing = [module for module in plan.VFIO_MODULES if module not in facts.modules]
        there = ", ".join(module for module in plan.VFIO_MODULES if module in facts.modules)
        criteria.append(
            Criterion(
                criterion="the VFIO modules are loaded", met=not missing, evidence=f"loaded: {there or 'none of them'}"
            )
        )
    if seen and seen.nvidia:
        criteria += _stack("the host", seen.nvidia)
    return HostReport(
        machine=_text(reading.extra.machine),
        processor=_text(reading.extra.processor),
        kernel=_version(facts.kernel),
        proxmox=_version(facts.pve),
        loader=_text(facts.loader),
        criteria=criteria,
        cards=cards,
    )


def _card(reading: Reading, name: str, host: Host, key: str, slot: str | None, outputs: Outputs | None) -> CardReport:
    facts, use = reading.facts, host.gpus[key].use
    functions = facts.functions(slot) if slot else []
    if not functions:
        absent = Criterion(criterion="the card is there", met=False, evidence="no function matches the settings")
        return CardReport(model="", id="", subsystem="", use=use, criteria=[absent])
    needed = [one["address"] for one in plan.card_plan(facts, host, key, slot or "")["functions"]]
    criteria = [_drivers([function for function in functions if function.address in needed], use)]
    place = ";".join(function.address for function in functions)
    if use == "vm":
        entries = facts.guests.mapping_entries.get(host.mapping_of(key), [])
        offered = any(entry.get("node") == reading.node and overlap(entry.get("path", ""), place) for entry in entries)
        evidence = "a PCI mapping of Proxmox VE has it" if offered else "no PCI mapping of its name has it"
        criteria.append(Criterion(criterion="it is offered to VMs", met=offered, evidence=evidence))
    criteria += _guests(name, key, use, slot or "", outputs)
    display = next((function for function in functions if function.is_display), functions[0])
    return CardReport(
        model=_text(facts.model(display)), id=display.id, subsystem=display.subsystem, use=use, criteria=criteria
    )


def _drivers(functions: Iterable[Device], use: str) -> Criterion:
    functions = list(functions)
    evidence = ", ".join(
        f"function {function.address.rpartition('.')[2]} [{function.id}]: {function.driver or 'no driver'}"
        for function in functions
    )
    if use == "vm":
        met = all(function.driver == "vfio-pci" for function in functions)
        return Criterion(
            criterion="each function is on vfio-pci, none on a driver of the host", met=met, evidence=evidence
        )
    if use == "shared":
        met = functions[0].driver in ("nvidia", "vfio-pci")
        return Criterion(criterion="the card is on NVIDIA's driver or on vfio-pci", met=met, evidence=evidence)
    of_nvidia = functions[0].vendor == NVIDIA
    met = functions[0].driver == "nvidia" if of_nvidia else bool(functions[0].driver)
    wanted = "NVIDIA's driver has the card" if of_nvidia else "its maker's driver has the card"
    return Criterion(criterion=wanted, met=met, evidence=evidence)


def _guests(name: str, key: str, use: str, slot: str, outputs: Outputs | None) -> Iterator[Criterion]:
    """What was seen of the card from inside."""
    if outputs is None:
        unknown = "the outputs of the last `pulumi up` can't be read"
        yield Criterion(criterion="a guest sees the card", met=None, evidence=unknown)
        return
    seen = outputs.hosts.get(name)
    card = seen.gpus.get(key) if seen else None
    if use in ("vm", "shared"):
        vms = [vm for vm in outputs.vms.values() if vm.host == name and key in vm.gpus]
        yield _vm_saw(card, vms)
        yield from _stacks("a VM", vms)
    if use in ("lxc", "shared"):
        containers = [
            container
            for container in outputs.containers.values()
            if container.host == name and (key in container.cards or in_slot(container.addresses, slot))
        ]
        yield _container_saw(containers)
        yield from _stacks("a container", containers)


def _vm_saw(card: GpuOutput | None, vms: list[VmOutput]) -> Criterion:
    criterion = "a VM sees the card"
    in_guests = [vm.nvidia for vm in vms if vm.nvidia and vm.nvidia.gpus]
    if in_guests:
        return Criterion(criterion=criterion, met=True, evidence="nvidia-smi inside a VM lists it")
    if card and card.test:
        functions = ", ".join(f"[{function.id}]" for function in card.test.functions)
        return Criterion(criterion=criterion, met=True, evidence=f"a test VM saw {functions} with its memory ranges")
    return Criterion(
        criterion=criterion,
        met=None,
        evidence="not checked: no VM with it has `nvidia`, and passthroughTest isn't set for it",
    )


def _container_saw(containers: list[ContainerOutput]) -> Criterion:
    criterion = "a container sees the card"
    opened = max((len(container.nodes) for container in containers), default=0)
    if opened:
        return Criterion(criterion=criterion, met=True, evidence=f"{opened} devices were opened from inside")
    why = "it was off" if containers else "no container has it"
    return Criterion(criterion=criterion, met=None, evidence=f"not checked: {why}")


def _stacks(who: str, guests: Iterable[VmOutput | ContainerOutput]) -> Iterator[Criterion]:
    for guest in guests:
        if guest.nvidia:
            yield from _stack(who, guest.nvidia)


def _stack(who: str, stack: NvidiaOutput) -> Iterator[Criterion]:
    flavour = f", {stack.flavour} modules" if stack.flavour else ""
    models = ", ".join(_text(gpu.name or "") or "a card" for gpu in stack.gpus) or "no card"
    driver = f"{_version(stack.driver)}{flavour}: {models}"
    yield Criterion(criterion=f"NVIDIA's driver works in {who}", met=bool(stack.gpus), evidence=driver)
    if stack.program is not None:
        cuda = f"CUDA {_version(stack.cuda)}" if stack.cuda else "no nvcc"
        yield Criterion(criterion=f"a CUDA program ran in {who}", met=stack.program, evidence=cuda)


def _version(text: str) -> str:
    return text if _VERSION.fullmatch(text) else ""


def _text(text: str) -> str:
    return text if _MODEL.fullmatch(text) else ""


_SIGNS: Mapping[bool | None, str] = {True: "yes", False: "NO", None: "not known"}


def _told(host: HostReport) -> Iterator[str]:
    system = f"Proxmox VE {host.proxmox or 'not found'}, kernel {host.kernel or 'not known'}"
    yield f"{host.machine or 'machine not known'}, {host.processor or 'processor not known'}: {system}"
    yield from (f"  {_line(criterion)}" for criterion in host.criteria)
    for card in host.cards:
        yield f"  {card.model or 'a card'} [{card.id}], for {card.use}"
        yield from (f"    {_line(criterion)}" for criterion in card.criteria)


def _line(criterion: Criterion) -> str:
    return f"{criterion.criterion}: {_SIGNS[criterion.met]} ({criterion.evidence})"
