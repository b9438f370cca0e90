"""The stack's outputs as a contract: what other programs may rely on (docs/outputs.schema.json is made from these models).

`version` is raised when something is taken away or changes its meaning; additions leave it as it is. A consumer reads `version`
first, and validates with `Outputs`.
"""

from __future__ import annotations

import functools
from typing import Any

import pulumi
from pydantic import BaseModel, ConfigDict, Field

from settings import Settings

VERSION = 1


class _Part(BaseModel):
    # Additions don't break a consumer that was written for an earlier set of keys.
    model_config = ConfigDict(extra="ignore", populate_by_name=True)


class Function(_Part):
    """A PCI function. ``address``: 0000:01:00.0; ``id``, ``subsystem``: vendor:device; ``class``: six hexadecimal digits."""

    address: str
    id: str
    subsystem: str
    class_code: str = Field(alias="class")
    driver: str = Field(description="the kernel driver that has it; empty: none")
    iommu_group: int | None = Field(alias="iommuGroup")


class Gpu(_Part):
    """A card of a host."""

    slot: str = Field(description="0000:01:00")
    use: str = Field(description="vm, lxc or host")
    functions: list[Function]
    iommu_group: int | None = Field(alias="iommuGroup")
    mapping: str | None = Field(description="id of its PCI mapping in Proxmox VE; null where it isn't offered to VMs")
    hostpci: str | None = Field(description="a value for a VM's hostpciN option")
    holder: str | None = Field(description="the VM of this stack that has it, by its name in `vms`")
    test: dict[str, Any] | None = Field(default=None, description="what the passthrough test's VM saw of it")


class Iommu(_Part):
    """``groups``: how many there are."""

    groups: int


class Host(_Part):
    """A verified host."""

    node: str = Field(description="its name in Proxmox VE")
    kernel: str
    boot_id: str = Field(alias="bootId")
    iommu: Iommu
    gpus: dict[str, Gpu]


class Vm(_Part):
    """A VM of this stack."""

    host: str
    node: str
    vmid: int
    name: str
    state: str = Field(description="running or stopped, as the last change left it")
    gpus: list[str] = Field(description="cards, by their names in the host's gpus")
    address: str | None = Field(description="where the guest is reached, if it is known")


class Outputs(_Part):
    """All outputs of a stack."""

    version: int
    hosts: dict[str, Host]
    vms: dict[str, Vm]


def schema() -> dict[str, Any]:
    """The JSON schema of the outputs."""
    return Outputs.model_json_schema(by_alias=True)


def outputs(
    settings: Settings, hosts: dict[str, pulumi.Output[dict[str, Any]]], vms: dict[str, pulumi.Output[dict[str, Any]]]
) -> dict[str, Any]:
    """What a program exports, from what its components put out."""
    holders = {(vm.host, use.gpu): name for name, vm in settings.vms.items() for use in vm.gpus}

    def of_host(name: str, found: dict[str, Any]) -> dict[str, Any]:
        host = settings.hosts[name]
        gpus = {}
        for gpu, about in found["gpus"].items():
            mapping = host.mapping_of(gpu) if host.api and host.gpus[gpu].use == "vm" else None
            gpus[gpu] = {
                **about,
                "mapping": mapping,
                "hostpci": mapping and f"mapping={mapping},pcie=1",
                "holder": holders.get((name, gpu)),
            }
        return {**found, "node": host.node or name, "gpus": gpus}

    return {
        "version": VERSION,
        "hosts": {name: found.apply(functools.partial(of_host, name)) for name, found in hosts.items()},
        "vms": vms,
    }
