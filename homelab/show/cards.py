"""The cards of a host and who has them; as a stack put them out. Pure, and without what reads a host: each `up` needs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from homelab.host import names

# What is set of a host, of a card, or of a guest's card: what it is, and how it is. None: nobody has read it.
Traits = tuple[tuple[str, str], ...]


@dataclass(frozen=True, order=True)
class ShownGuest:
    """Who has a card. `kind`: VM, container or host; `id`: its number, 0 for the host itself; `about`: how it has the card."""

    kind: str
    id: int
    name: str = dataclasses.field(default="", compare=False)
    about: Traits | None = dataclasses.field(default=None, compare=False)

    def __str__(self) -> str:
        if self.kind == "host":
            return "the host itself"
        return f"{self.kind} {self.id}" + (f" ({self.name})" if self.name else "")


@dataclass(frozen=True)
class ShownCard:
    """`place`: its slot, or what the settings find it by; `called`: host/names.py; `group`: its IOMMU group, in words; `beside`: what
    else is in that; `driver`: of its first function; `guests`: who has it, by configuration; `about`: what is set of it."""

    place: str
    called: str
    group: str
    beside: tuple[str, ...] = ()
    driver: str = ""
    guests: tuple[ShownGuest, ...] = ()
    about: Traits | None = None


def group_of(number: int | None, there_are_some: bool) -> str:
    if number is not None:
        return f"IOMMU group {number}"
    return "no IOMMU group" if there_are_some else "no IOMMU group yet (the IOMMU is off)"


def of_outputs(outputs: Mapping[str, Any], host: str) -> list[ShownCard]:
    """A host's cards as its stack last put them out, by their places, for who can't read the host; none where it has put out nothing.

    Whatever goes through Pulumi's protocol has no order of its own.

    :param outputs: homelab/contract.py.
    :param host: the host's name in the settings.
    """
    found = []
    for name, gpu in (outputs.get("hosts", {}).get(host) or {}).get("gpus", {}).items():
        vms = [
            ShownGuest("VM", int(one["vmid"]), str(one["name"]))
            for one in outputs.get("vms", {}).values()
            if one["host"] == host and name in one["gpus"]
        ]
        containers = [
            ShownGuest("container", int(one["ctid"]), str(one["name"]))
            for one in outputs.get("containers", {}).values()
            if one["host"] == host
            and (name in (one.get("cards") or {}) or in_slot(one.get("addresses") or [], gpu["slot"]))
        ]
        functions = gpu.get("functions") or [{}]
        group = gpu.get("iommuGroup")
        guests = (*vms, *containers, *([ShownGuest("host", 0)] if gpu["use"] == "host" else []))
        about = (str(gpu["slot"]), names.of_output(gpu), group_of(None if group is None else int(group), True))
        found.append(ShownCard(*about, (), str(functions[0].get("driver") or "no driver"), guests))
    return sorted(found, key=lambda card: card.place)


def in_slot(addresses: Iterable[str], slot: str) -> bool:
    """Is one of these functions in a card's slot? So a container has a card of NVIDIA's: its numbers of /dev/nvidiaN say nothing of a place.

    :param addresses: such as `0000:01:00.0`.
    :param slot: such as `0000:01:00`.
    """
    return any(address.startswith(f"{slot}.") for address in addresses)
