"""GpuCards: the bound cards of a host, offered to its VMs: a PCI mapping for each, and who has it.

Owns one entry of each card's mapping. Undone by taking that entry away; a mapping goes with its last entry.
"""

from __future__ import annotations

import functools
from typing import Any

import pulumi

from components.host_reboot import HostReboot
from proxmox.gpu_lease import GpuLease
from proxmox.pci_mapping import PciMapping
from settings import Host, Vm


class GpuCards(pulumi.ComponentResource):
    """Nothing is made for a host without an ``api``: its cards are bound, and that is all.

    :param vms: the VMs of this host, by name.
    """

    def __init__(
        self,
        name: str,
        host_name: str,
        host: Host,
        boot: HostReboot,
        vms: dict[str, Vm],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("homelab:gpu:GpuCards", name, {}, opts)
        holders = {use.gpu: (vm_name, vm) for vm_name, vm in vms.items() for use in vm.gpus}
        cards = [gpu for gpu, about in host.gpus.items() if about.use == "vm"] if host.api else []
        for gpu in cards:
            about: dict[str, Any] = {
                "host": host_name,
                "node": host.node or host_name,
                "mapping": host.mapping_of(gpu),
            }
            mapping = PciMapping(
                f"{host_name}-{gpu}-mapping",
                {**about, "entry": boot.host.apply(functools.partial(mapping_entry, gpu))},
                pulumi.ResourceOptions(parent=self, depends_on=[boot]),
            )
            vm_name, vm = holders.get(gpu, (None, None))
            GpuLease(
                f"{host_name}-{gpu}-lease",
                {
                    **about,
                    "slot": boot.host.apply(functools.partial(_slot, gpu)),
                    "vm": vm_name,
                    "vmid": vm and vm.vmid,
                    "shutdown": vm and vm.shutdown.model_dump(mode="json"),
                },
                pulumi.ResourceOptions(parent=self, depends_on=[mapping]),
            )
        self.register_outputs({})


def _slot(name: str, host: dict[str, Any]) -> str:
    return str(host["gpus"][name]["slot"])


def mapping_entry(name: str, host: dict[str, Any]) -> dict[str, str]:
    """What Proxmox VE compares with the hardware at a VM's start: those of the slot's first function.

    :param name: the card's.
    :param host: as HostReboot puts it out.
    """
    gpu = host["gpus"][name]
    first = gpu["functions"][0]
    group = first["iommuGroup"]
    entry = {"path": gpu["slot"], "id": first["id"], "iommugroup": "-1" if group is None else str(int(group))}
    # A card without a subsystem id has the property left out; 0000:0000 is how sysfs says so.
    return entry if first["subsystem"] in ("", "0000:0000") else {**entry, "subsystem-id": first["subsystem"]}
