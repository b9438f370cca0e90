"""PciMapping: a card as a cluster-wide resource mapping, so that a token may give it to a VM.

Proxmox VE lets nobody but root@pam with a password give a device by its address; a mapping can be used by whoever has Mapping.Use
on it. One resource owns one entry of the mapping: the one of its node. Entries of other nodes, and a mapping's description and
flags, stay as they are; the mapping goes with its last entry.

What stood there before is in the state, as PciMappingRecord's, before anything is written: a run that is killed right after its
request knows that the entry is its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pulumi

from homelab.host.classes import GRAPHICS
from homelab.resources.base import NodeInputs, Owned, Resource
from homelab.shapes import BootedHost

# What identifies a resource; a change of any makes another one.
IDENTITY = frozenset(("host", "node", "mapping"))


class PciMapping(Owned):
    """See the module."""

    kind = "pci:Mapping"
    replaced_by = IDENTITY

    @dataclass(frozen=True, kw_only=True)
    class Inputs(NodeInputs):
        """`entry`: path, id, subsystem-id, iommugroup; `before`, `known`: as PciMappingRecord puts them out.

        `live_migration`: is the mapping to have the flag? `had_flag`: had it that before, as PciMappingRecord puts it out.
        """

        mapping: str
        entry: dict[str, str]
        before: str
        known: bool
        live_migration: bool = False
        had_flag: bool = False

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """`drift`: the entry that was found, where it is another one."""

        drift: list[str] = field(default_factory=list)

    mapping: pulumi.Output[str]


class PciMappingRecord(Resource):
    """What a card's entry was before we wrote ours. It is noted on the host as well (homelab/remote/ledger.py), so that a stack whose
    state was lost knows this program's entry.

    A card that is in another slot now has the same mapping, and what that was at first is still what comes back.
    """

    kind = "pci:Record"
    replaced_by = IDENTITY
    ignored = frozenset(("path",))

    @dataclass(frozen=True, kw_only=True)
    class Inputs(NodeInputs):
        """`path`: of the card, when it was recorded."""

        mapping: str
        path: str

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """`before`: the entry as it was, empty where there was none; `known`: was there such a mapping? `had_flag`: and was it one for live migration?"""

        before: str
        known: bool
        had_flag: bool = False

    before: pulumi.Output[str]
    known: pulumi.Output[bool]
    had_flag: pulumi.Output[bool]


def path_of(gpu: str, host: BootedHost) -> str:
    """A card as Proxmox VE names it: its slot, or its functions, joined by `;`, where others are in the slot, too.

    :param gpu: its name in the settings.
    :param host: as HostReboot puts it out.
    """
    card = host["gpus"][gpu]
    return card.get("path") or card["slot"]


def entry_of(gpu: str, host: BootedHost) -> dict[str, str]:
    """What Proxmox VE compares with the hardware at a VM's start: id, subsystem and group of the slot's first function.

    Of a path of several functions it compares the one id and subsystem with each, which functions of different kinds never pass. So
    a card that shares its slot is offered by its graphics function alone. The arguments are those of `path_of`.
    """
    path, functions = path_of(gpu, host), host["gpus"][gpu]["functions"]
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
