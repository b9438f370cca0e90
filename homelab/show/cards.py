"""A host's cards and the guests that have them, from a stack's outputs. Pure, and without imports that read a host:
each `up` needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from homelab.facts import names

# Options of a host, of a card, or of a guest's card: name and value. `Traits | None`: None where they weren't read.
Traits = tuple[tuple[str, str], ...]
# What programs ask of a node of the tree, by the names of the outputs (docs/outputs.md).
Data = Mapping[str, Any]


@dataclass(frozen=True, order=True)
class ShownGuest:
    """A guest, or the host, that has a card. `kind`: VM, container or host; `id`: the guest's, 0 for the host;
    `traits`: its options of the card; `steps`: what the next `up` does with it.
    """

    kind: str
    id: int
    name: str = field(default="", compare=False)
    traits: Traits | None = field(default=None, compare=False)
    steps: tuple[str, ...] = field(default=(), compare=False)

    @property
    def data(self) -> Data:
        """Who it is, by the names of the outputs."""
        guest = {"vmid" if self.kind == "VM" else "ctid": self.id, "name": self.name} if self.id else {}
        return {"kind": self.kind.lower(), **guest}

    def __str__(self) -> str:
        if self.kind == "host":
            return "the host itself"
        return f"{self.kind} {self.id}" + (f" ({self.name})" if self.name else "")


@dataclass(frozen=True)
class ShownCard:
    """A card in the tree. `place`: its slot, or what the settings find it by; `name`: as of homelab/facts/names.py;
    `group`: the title of its IOMMU group; `others_in_group`: other functions there; `driver`: of its first function;
    `guests`: those whose configuration has it; `traits`: its options; `steps`: what the next `up` does with its
    mapping; `data`: what programs ask of it.
    """

    place: str
    name: str
    group: str
    others_in_group: tuple[str, ...] = ()
    driver: str = ""
    guests: tuple[ShownGuest, ...] = ()
    traits: Traits | None = None
    steps: tuple[str, ...] = ()
    data: Data = field(default_factory=dict)


def group_title(number: int | None, groups_exist: bool) -> str:
    """An IOMMU group for a person.

    :param number: None: the card is in no group.
    :param groups_exist: whether the host has any group.
    """
    if number is not None:
        return f"IOMMU group {number}"
    return "no IOMMU group" if groups_exist else "no IOMMU group yet (the IOMMU is off)"


def of_outputs(outputs: Mapping[str, Any], host: str) -> list[ShownCard]:
    """A host's cards from its stack's last outputs, in the order of their places, where the host can't be read; empty
    without outputs.

    They are sorted because Pulumi's protocol keeps no order.

    :param outputs: homelab/contract.py.
    :param host: the host's name in the settings.
    """
    cards = []
    for name, gpu in (outputs.get("hosts", {}).get(host) or {}).get("gpus", {}).items():
        vms = [
            ShownGuest("VM", int(vm["vmid"]), str(vm["name"]))
            for vm in outputs.get("vms", {}).values()
            if vm["host"] == host and name in vm["gpus"]
        ]
        containers = [
            ShownGuest("container", int(container["ctid"]), str(container["name"]))
            for container in outputs.get("containers", {}).values()
            if container["host"] == host
            and (name in (container.get("cards") or {}) or in_slot(container.get("addresses") or [], gpu["slot"]))
        ]
        functions = gpu.get("functions") or [{}]
        group = gpu.get("iommuGroup")
        guests = (*vms, *containers, *([ShownGuest("host", 0)] if gpu["use"] == "host" else []))
        driver = functions[0].get("driver")
        title = "IOMMU group not read" if driver is None else group_title(None if group is None else int(group), True)
        driver = "no driver" if driver == "" else str(driver or "")
        cards.append(ShownCard(str(gpu["slot"]), names.of_output(gpu), title, (), driver, guests))
    return sorted(cards, key=lambda card: card.place)


def in_slot(addresses: Iterable[str], slot: str) -> bool:
    """Whether one of these functions is in a card's slot. For containers with NVIDIA's cards, since a number of
    /dev/nvidiaN tells no slot.

    :param addresses: such as `0000:01:00.0`.
    :param slot: such as `0000:01:00`.
    """
    return any(address.startswith(f"{slot}.") for address in addresses)
