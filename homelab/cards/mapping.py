"""A node's entries of a card's PCI mapping: which of them is the card's, and whether another one is in its way. Pure:
the gate and the work on the mapping ask the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from homelab.errors import HomelabError
from homelab.facts.guests import mapping_note
from homelab.facts.host import HostFacts
from homelab.settings import Host
from remote_scripts.pve import vm_conf
from remote_scripts.pve.properties import overlap, parse


def entry_at(entries: Sequence[str], node: str, path: str) -> str | None:
    """A node's entry that has a function of the path; None: there is none."""
    for entry in entries:
        properties = parse("map", entry)
        if properties.get("node") == node and overlap(properties.get("path", ""), path):
            return entry
    return None


def own_entry(entries: Sequence[str], node: str, path: str, old_path: str) -> str | None:
    """A node's entry of the card; None: there is none.

    :param old_path: where this program has put it; empty: nowhere. A lone entry of the node is that one then, also
        where somebody has given it another path since.
    """
    here = [entry for entry in entries if parse("map", entry).get("node") == node]
    edited = here[0] if old_path and len(here) == 1 else None
    return entry_at(here, node, path) or entry_at(here, node, old_path) or edited


def noted_path(note: Mapping[str, Any] | None, gpu: str) -> str:
    """Where this program has noted the entry of a card; empty: nowhere, or of another key of the settings."""
    return str(note["path"]) if note and note["gpu"] == gpu else ""


def replaced(entries: Sequence[str], gpu: str, mapping: str, node: str, path: str, old_path: str) -> str | None:
    """The entry in whose place the card's comes; None: there is none.

    :param gpu: the card's key in the settings.
    :param old_path: where the card's entry was until now; empty: it isn't known.
    :raises HomelabError: the node has an entry of another device as well.
    """
    present = own_entry(entries, node, path, old_path)
    others = (entry for entry in entries if entry != present and parse("map", entry).get("node") == node)
    if taken := next(others, None):
        raise HomelabError(
            wanted=f"the PCI mapping {mapping} for {path} of {node}",
            found=f"there is one of that name, for another device of this node: {taken}",
            why="a VM with it would get either of the two, and whoever has the other device by it would lose that",
            next=f"choose another name with gpus.{gpu}.mapping, or remove that entry (Datacenter -> Resource "
            "Mappings); then run `pulumi up` again",
        )
    return present


def refused(facts: HostFacts, host: Host, slots: Mapping[str, str]) -> Iterator[HomelabError]:
    """A gate: the mapping of a card that VMs can have is for no other device of this node.

    :param slots: of the cards.
    """
    node, mappings = host.node_name, vm_conf.mappings(facts.guests.mappings)
    for gpu in (gpu for gpu in slots if host.gpus[gpu].may_leave):
        mapping = host.mapping_of(gpu)
        entries = [value for key, value in mappings.get(mapping, ()) if key == "map"]
        path = facts.path_of(slots[gpu]).partition(";")[0]
        try:
            replaced(entries, gpu, mapping, node, path, noted_path(mapping_note(facts.ledger, node, mapping), gpu))
        except HomelabError as error:
            yield error
