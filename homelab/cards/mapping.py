"""A node's entries of a card's PCI mapping: which of them is the card's, whether another one is in its way, and what
differs. Pure: preview, refresh, `up`, doctor and show ask the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from homelab.cards.entry import as_text, entry_of
from homelab.errors import HomelabError
from homelab.facts.guests import mapping_note
from homelab.facts.host import HostFacts
from homelab.findings import Judged
from homelab.settings import Host
from remote_scripts.pve import vm_conf
from remote_scripts.pve.properties import overlap, parse

# Of a mapping as a whole, for all nodes.
FLAG = "live-migration-capable"


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


def equal(entry: str, other: str) -> bool:
    """The same entry? Its description doesn't count: people write it. A slot's first function, where the other has the
    slot, is the card, too: the one that a person chose.
    """
    first, second = parse("map", entry), parse("map", other)
    if first.get("path") == f"{second.get('path')}.0":
        first = {**first, "path": second["path"]}
    return {**first, "description": ""} == {**second, "description": ""}


def steps(mapping: str, present: str | None, wanted: str, *, lacks_flag: bool) -> list[str]:
    """What the next `up` does with a node's entry of a mapping.

    :param present: the entry that is there; None: there is none.
    :param wanted: the one that is to be.
    :param lacks_flag: it is to be for live migration, and isn't.
    """
    if present is None:
        return [f"the PCI mapping {mapping}: not there -> {wanted}"]
    changed = [] if equal(present, wanted) else [f"the PCI mapping {mapping}: {present} -> {wanted}"]
    return changed + [f"the PCI mapping {mapping} is not for live migration any more ({FLAG})"] * lacks_flag


def judge_mapping(facts: HostFacts, host: Host, gpu: str, slot: str) -> Judged:
    """What is judged of a card's mapping: of the entry of its host's node, which is to be what is in the slot.

    :param gpu: the card's key in the settings.
    """
    node, mapping, path = host.node_name, host.mapping_of(gpu), facts.path_of(slot).partition(";")[0]
    properties = vm_conf.mappings(facts.guests.mappings).get(mapping, [])
    entries = [value for key, value in properties if key == "map"]
    old_path = noted_path(mapping_note(facts.ledger, node, mapping), gpu)
    first = facts.functions(path)[0] if path in facts.by_address else facts.functions(slot)[0]
    present = own_entry(entries, node, path, old_path)
    to_be = entry_of(path, first.id, first.subsystem, first.group)
    if not facts.iommu.groups:  # the group isn't known before the restart
        to_be["iommugroup"] = parse("map", present or "").get("iommugroup", "")
    wanted = as_text(node, to_be)
    lacks_flag = host.gpus[gpu].live_migration and mapping not in vm_conf.migrating(facts.guests.mappings)
    against = list[HomelabError]()
    try:
        replaced(entries, gpu, mapping, node, path, old_path)
    except HomelabError as error:
        against = [error]
    return Judged(
        title=f"the PCI mapping {mapping} to be what is in the slot",
        why="Proxmox VE compares them at each start and refuses a VM whose card has changed",
        steps=steps(mapping, present, wanted, lacks_flag=lacks_flag),
        against=against,
    )
