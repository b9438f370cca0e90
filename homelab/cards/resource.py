"""CardMapping: a card as a cluster-wide resource mapping, by which VMs name it: of each node it has that node's card.
One resource owns one entry of the mapping: the one of its node. Entries of other nodes, and a mapping's description and
flags, stay as they are; the mapping goes with its last entry.

What stood there before is noted on the host before anything is written (homelab/remote/ledger.py), and put out: a run
that is killed right after its request, and a stack whose state was lost, know that the entry is this program's. A card
that is in another slot by now has the same mapping, and what that was at first is what comes back. The note says by
which key of `gpus` the mapping is kept: another key adopts it first, and what had the old one leaves it alone then.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from homelab.cards import entry
from homelab.resources.base import NodeInputs, Owned
from homelab.shapes import BootedHost


class CardMapping(Owned):
    """A node's entry of a PCI mapping."""

    kind = "pci:Mapping"
    replaced_by = frozenset(("host", "node", "mapping"))

    @dataclass(frozen=True, kw_only=True)
    class Inputs(NodeInputs):
        """`gpu`: the card's key in the settings; `entry`: path, id, subsystem-id, iommugroup; `live_migration`: is the
        mapping to have the flag? `keepers`: the ids of the VMs that the settings give the card; any other one of this
        stack loses it before one of these gets it."""

        gpu: str
        mapping: str
        entry: dict[str, str]
        live_migration: bool = False
        keepers: list[int] = field(default_factory=list)

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """`before`: the entry as it was, empty where there was none; `had_flag`: was the mapping one for live
        migration? `drift`: the entry that was found, where it is another one.
        """

        before: str
        had_flag: bool = False
        drift: list[str] = field(default_factory=list)


def entry_of(gpu: str, host: BootedHost) -> dict[str, str]:
    """A card's entry.

    Of a path of several functions Proxmox VE compares the one id and subsystem with each, which functions of different
    kinds never pass. So a card that shares its slot is offered by its path's first function alone, its graphics.

    :param gpu: its name in the settings.
    :param host: as HostReboot puts it out.
    """
    card = host["gpus"][gpu]
    path = card["path"].partition(";")[0]
    first = next(one for one in card["functions"] if one["address"].startswith(path))
    group = first.get("iommuGroup")
    return entry.entry_of(path, first["id"], first["subsystem"], None if group is None else int(group))
