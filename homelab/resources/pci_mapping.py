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

from homelab.resources.base import NodeInputs, Owned, Resource

# What identifies a resource; a change of any makes another one.
IDENTITY = frozenset(("host", "node", "mapping"))


class PciMapping(Owned):
    """See the module."""

    kind = "pci:Mapping"
    replaced_by = IDENTITY

    @dataclass(frozen=True, kw_only=True)
    class Inputs(NodeInputs):
        """``entry``: path, id, subsystem-id, iommugroup; ``before``, ``known``: as PciMappingRecord puts them out.

        ``live_migration``: is the mapping to have the flag? ``had_flag``: had it that before, as PciMappingRecord puts it out.
        """

        mapping: str
        entry: dict[str, str]
        before: str
        known: bool
        live_migration: bool = False
        had_flag: bool = False

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """``drift``: the entry that was found, where it is another one."""

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
        """``path``: of the card, when it was recorded."""

        mapping: str
        path: str

    @dataclass(frozen=True, kw_only=True)
    class Outputs:
        """``before``: the entry as it was, empty where there was none; ``known``: was there such a mapping? ``had_flag``: and was it one for live migration?"""

        before: str
        known: bool
        had_flag: bool = False

    before: pulumi.Output[str]
    known: pulumi.Output[bool]
    had_flag: pulumi.Output[bool]
