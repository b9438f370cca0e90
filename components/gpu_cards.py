"""GpuCards: the bound cards of a host, offered to its VMs: a PCI mapping for each, and who has it.

Owns one entry of each card's mapping. Undone by taking that entry away; a mapping goes with its last entry. A card with
`passthroughTest` is proved before a VM gets it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, TypedDict

import pulumi

from homelab.host.classes import GRAPHICS
from homelab.resources.children import formerly
from homelab.resources.gpu_lease import GpuLease
from homelab.resources.pci_mapping import PciMapping, PciMappingRecord
from homelab.settings import Host, Vm
from homelab.shapes import BootedHost, OfferedCard

from .passthrough_test import PassthroughTest, PassthroughTestArgs


class _Driver(TypedDict, total=False):
    driver: str


@dataclass(frozen=True, kw_only=True)
class GpuCardsArgs:
    """``host_name``: in the settings; ``booted``: the verified host, as HostReboot puts it out; ``vms``: those of this host, by name."""

    host_name: str
    host: Host
    booted: pulumi.Output[BootedHost]
    vms: dict[str, Vm]


class GpuCards(pulumi.ComponentResource):
    """Nothing is made for a host without an ``api``: its cards are bound, and that is all.

    Outputs: ``cards``, name -> ``mapping`` and ``slot`` (its path: see `_path`), as a GpuVm takes them; ``tests``, name -> what the passthrough test saw.
    """

    cards: pulumi.Output[dict[str, OfferedCard]]
    tests: pulumi.Output[dict[str, dict[str, Any]]]

    def __init__(self, name: str, args: GpuCardsArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("homelab:gpu:GpuCards", name, {}, opts)
        host_name, host, booted = args.host_name, args.host, args.booted
        before = opts.depends_on if opts else None
        # Of a card that is handed over, several VMs may name it at once: each gets and loses it by itself, and none has to give it up first.
        leased = {gpu for gpu, about in host.gpus.items() if about.use != "shared"}
        holders = {use.gpu: (vm_name, vm) for vm_name, vm in args.vms.items() for use in vm.gpus if use.gpu in leased}
        tests: dict[str, pulumi.Output[dict[str, Any]]] = {}
        released: dict[str, pulumi.Resource] = {}
        cards = [gpu for gpu, about in host.gpus.items() if about.may_leave] if host.api else []
        for gpu in cards:
            about: dict[str, Any] = {
                "host": host_name,
                "node": host.node or host_name,
                "mapping": host.mapping_of(gpu),
            }
            # The three have types that tell them apart.
            card, merged = f"{host_name}-{gpu}", pulumi.ResourceOptions.merge
            # By its path the mapping's entry and a VM's option are known to be this card's.
            slot = booted.apply(functools.partial(_path, gpu))
            record = PciMappingRecord(
                card,
                {**about, "path": slot},
                merged(formerly(f"{card}-mapping-record"), pulumi.ResourceOptions(parent=self, depends_on=before)),
            )
            mapping = PciMapping(
                card,
                {
                    **about,
                    "entry": booted.apply(functools.partial(mapping_entry, gpu)),
                    "before": record.before,
                    "known": record.known,
                    **_flag(host, gpu, record),
                },
                merged(formerly(f"{card}-mapping"), pulumi.ResourceOptions(parent=self, depends_on=[record])),
            )
            released[gpu] = lease(
                card,
                {**about, "slot": slot},
                holders.get(gpu),
                merged(formerly(f"{card}-lease"), pulumi.ResourceOptions(parent=self, depends_on=[mapping])),
            )
        for gpu, about_gpu in host.gpus.items():
            if about_gpu.use == "vm" and about_gpu.passthrough_test:
                # Before a VM has it: the test refuses a card that another VM runs with. Not again after each reboot, when one may.
                after = pulumi.ResourceOptions(depends_on=[released[gpu]] if gpu in released else before)
                functions = booted.apply(functools.partial(_functions, gpu))
                about_test = PassthroughTestArgs(host=host, functions=functions)
                options = pulumi.ResourceOptions.merge(after, pulumi.ResourceOptions(parent=self))
                tests[gpu] = PassthroughTest(f"{host_name}-{gpu}-test", about_test, options).seen
        self.tests = pulumi.Output.all(**tests) if tests else pulumi.Output.from_input({})  # `all` of nothing is a list
        self.cards = booted.apply(
            lambda found: {
                gpu: {"mapping": host.mapping_of(gpu), "slot": _path(gpu, found), **_driver(gpu, found)}
                for gpu in cards
            }
        )
        self.register_outputs({"cards": self.cards, "tests": self.tests})


def _flag(host: Host, gpu: str, record: PciMappingRecord) -> dict[str, pulumi.Input[bool]]:
    """Where the settings ask for live migration; else a state of an earlier version has the same inputs."""
    if not host.gpus[gpu].live_migration:
        return {}
    return {"live_migration": True, "had_flag": record.had_flag.apply(bool)}


def lease(
    name: str, card: dict[str, pulumi.Input[str]], holder: tuple[str, Vm] | None, opts: pulumi.ResourceOptions
) -> GpuLease:
    """Who has a card.

    :param card: ``host``, ``node``, ``mapping``, ``slot`` (its path).
    :param holder: the VM that gets it and its name in the settings, if one does.
    """
    vm_name, vm = holder or (None, None)
    shutdown = vm and vm.shutdown.model_dump(mode="json")
    return GpuLease(name, {**card, "vm": vm_name, "vmid": vm and vm.vmid, "shutdown": shutdown}, opts)


def _functions(name: str, host: BootedHost) -> dict[str, str]:
    return {function["address"]: function["id"] for function in host["gpus"][name]["functions"]}


def _path(name: str, host: BootedHost) -> str:
    """The card as Proxmox VE names it: its slot, or its functions, joined by ``;``, where others are in the slot, too."""
    gpu = host["gpus"][name]
    return gpu.get("path") or gpu["slot"]


def _driver(name: str, host: BootedHost) -> _Driver:
    """Of a card that is handed over, where Proxmox VE knows how to leave its driver alone."""
    return {"driver": "keep"} if host["gpus"][name].get("keep") else {}


def mapping_entry(name: str, host: BootedHost) -> dict[str, str]:
    """What Proxmox VE compares with the hardware at a VM's start: id, subsystem and group of the slot's first function.

    Of a path of several functions it compares the one id and subsystem with each, which functions of different kinds never pass. So
    a card that shares its slot is offered by its graphics function alone.

    :param name: the card's.
    :param host: as HostReboot puts it out.
    """
    path, functions = _path(name, host), host["gpus"][name]["functions"]
    shared = ";" in path or "." in path
    first = (
        next((one for one in functions if one["class"].startswith(GRAPHICS)), functions[0]) if shared else functions[0]
    )
    group = first.get("iommuGroup")
    return {
        "path": first["address"] if shared else path,
        "id": first["id"],
        "iommugroup": "-1" if group is None else str(int(group)),
        # 0000:0000, too, is compared; only a function without these files in sysfs has none.
        "subsystem-id": "" if first["subsystem"] in ("", "0:0") else first["subsystem"],
    }
