"""A host: its IOMMU, its cards, its limits."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from homelab.model import Model
from homelab.settings.access import Api, Ssh
from homelab.settings.nvidia import Nvidia
from homelab.settings.types import (
    Function,
    GuestId,
    Name,
    NetworkAddress,
    NodeName,
    Place,
    Plain,
    Seconds,
)

_PCI_ID = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}")
# pve-configid, what Proxmox VE takes as a mapping's id.
_CONFIG_ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]+")


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


class Iommu(Model):
    """``enable``: put amd_iommu=on or intel_iommu=on on the command line; ``passthrough``: iommu=pt (host devices bypass it).

    None: where a VM gets a card, see `Host.wants_iommu`.
    """

    enable: bool | None = None
    passthrough: bool | None = None


class Gpu(Model):
    """A card, by what it is (``match``), where it is (``address``: its slot, or its graphics function), or both; and who gets it (``use``).

    ``allow…`` opens one gate each: group members that may go along, the firmware's console, containers that lose the card.
    ``mapping``: the id of its PCI mapping, by default the card's name. ``passthroughTest``: prove it with a small VM.
    """

    match: Plain | None = None
    address: Place | None = None
    use: Literal["vm", "lxc", "host"] = "vm"
    allow_group_members: list[Function] = []
    allow_console: bool = False
    allow_containers: list[GuestId] = []
    mapping: Plain | None = None
    passthrough_test: bool = False

    @field_validator("mapping")
    @classmethod
    def _mapping_id(cls, value: str | None) -> str | None:
        if value is not None and not _CONFIG_ID.fullmatch(value):
            raise ValueError("expected a mapping's id: a letter, then letters, digits, hyphens, underscores")
        return value

    @field_validator("match", mode="before")
    @classmethod
    def _id(cls, value: Any) -> Any:
        value = _lower(value)
        if isinstance(value, str) and not _PCI_ID.fullmatch(value):
            raise ValueError("expected vendor:device in hexadecimal, such as 10de:2b85 (see `lspci -nn`)")
        return value

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.match is None and self.address is None:
            raise ValueError("expected `match` (vendor:device, such as 10de:2b85) or `address` (such as 0000:01:00)")
        return self


# Seconds from a host's start until it can have been reached and its boot confirmed.
SHORTEST_ROLLBACK = 30


class Timeouts(Model):
    """Seconds. ``connect``: for a connection; ``api``: until the API answers; ``api_task``: for a task of Proxmox VE, besides what it
    waits for; ``create``: for making or removing a guest, whose disk may have to be copied over a network or overwritten; ``reboot``: until a rebooting host
    answers again; ``rollback``: after its start, until an unconfirmed boot is undone; ``script``: for one script on the host, the wait
    for another run's included; ``task``: for one change over the API, or for one reading, beside what it has to wait for.
    """

    connect: Seconds = 15
    api: Seconds = 60
    api_task: Seconds = 300
    create: Seconds = 7200
    reboot: Seconds = 600
    rollback: Seconds = 600
    script: Seconds = 3600
    task: Seconds = 10_800

    @field_validator("rollback")
    @classmethod
    def _long_enough(cls, value: int) -> int:
        if value < SHORTEST_ROLLBACK:
            raise ValueError(
                f"expected {SHORTEST_ROLLBACK} seconds at least: a healthy host needs them to start its services and be asked how it "
                "is; a shorter time undoes every boot"
            )
        return value

    @property
    def boot(self) -> int:
        """For how long a host that was told to reboot is waited for: its reboot; then the switch's time, and the reboot that it makes."""
        return self.reboot + self.rollback + self.reboot


class Host(Model):
    """One Proxmox VE node. ``takeOver``: bind with this program's means what somebody else's configuration binds already.

    ``node``: its name in Proxmox VE, by default the name it has here. ``api`` is needed where cards go to VMs. ``nvidia``: NVIDIA's
    driver on the node itself, for the cards that stay with it.
    """

    address: NetworkAddress
    ssh: Ssh
    api: Api | None = None
    node: NodeName | None = None
    iommu: Iommu = Iommu()
    gpus: dict[Name, Gpu] = {}
    take_over: bool = False
    reboot: Literal["auto", "manual"] = "auto"
    nvidia: Nvidia | None = None
    timeouts: Timeouts = Timeouts()

    @property
    def gives_cards(self) -> bool:
        """Does a VM get a card?"""
        return any(gpu.use == "vm" for gpu in self.gpus.values())

    @property
    def wants_iommu(self) -> bool:
        """Is the IOMMU to be switched on? Where no VM gets a card, only if the settings ask for it."""
        return self.gives_cards if self.iommu.enable is None else self.iommu.enable

    @property
    def bypasses_iommu(self) -> bool:
        """Are the host's own devices to bypass it (iommu=pt)?"""
        default = self.gives_cards or self.wants_iommu
        return default if self.iommu.passthrough is None else self.iommu.passthrough

    def mapping_of(self, gpu: str) -> str:
        """The id of a card's PCI mapping."""
        return self.gpus[gpu].mapping or gpu

    @model_validator(mode="after")
    def _distinct_mappings(self) -> Self:
        passed = [name for name, gpu in self.gpus.items() if gpu.use == "vm"] if self.api else []
        ids = [self.mapping_of(name) for name in passed]
        for name in passed:
            if not _CONFIG_ID.fullmatch(self.mapping_of(name)):
                raise ValueError(f"gpus.{name}: Proxmox VE takes no mapping id of one letter: set `mapping`")
            if ids.count(self.mapping_of(name)) > 1:
                raise ValueError(f"gpus.{name}: another card of this host has the mapping {self.mapping_of(name)}, too")
        return self

    @model_validator(mode="after")
    def _distinct_gpus(self) -> Self:
        for name, gpu in self.gpus.items():
            for other_name, other in self.gpus.items():
                if other_name > name and gpu.address == other.address and gpu.match == other.match:
                    raise ValueError(
                        f"gpus.{name} and gpus.{other_name} are the same card ({gpu.address or gpu.match})"
                    )
                if other_name > name and gpu.address is not None and gpu.address == other.address:
                    raise ValueError(f"gpus.{name} and gpus.{other_name} are the same card ({gpu.address})")
        return self
