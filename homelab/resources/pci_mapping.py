"""PciMapping: a card as a cluster-wide resource mapping, so that a token may give it to a VM.

Proxmox VE lets nobody but root@pam with a password give a device by its address; a mapping can be used by whoever has Mapping.Use
on it. One resource owns one entry of the mapping: the one of its node. Entries of other nodes, and a mapping's description and
flags, stay as they are; the mapping goes with its last entry. Fields: PVE::Mapping::PCI; what a start compares is in
`assert_valid` there: id and subsystem-id of each function of its path (of a slot: the first), IOMMU group of the first one.

What stood there before is in the state, as PciMappingRecord's, before anything is written: a run that is killed right after its
request can't take its own entry for somebody's.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from homelab.resources.api import ApiProvider
from homelab.text import tell

if TYPE_CHECKING:
    from homelab.remote.proxmox.api import Api
    from homelab.settings import Host

# What identifies a resource; a change of any makes another one.
IDENTITY = ("host", "node", "mapping")


class PciMappingProvider(ApiProvider):
    """See the module. Inputs: host, node, mapping, entry (path, id, subsystem-id, iommugroup), before (an entry, or none), known (was
    there such a mapping?).
    """

    def create(self, props: dict[str, Any]) -> CreateResult:
        api = self.api(props)
        if props["known"] or not _made(api, props):
            _write(api, props, None)
        return CreateResult(_id(props), {**props, "found": entry_of(props)})

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        from homelab.remote.proxmox.errors import NotThereError

        name = props["mapping"]
        try:
            mapping = self.reading(props, f"cluster/mapping/pci/{name}", f"to read the mapping {name}")
        except NotThereError:
            tell(f"{name}: drift: the PCI mapping is gone")
            return ReadResult("", {})
        ours = _ours(mapping["map"], props["node"], props["entry"]["path"])
        if ours is None:
            tell(
                f"{name}: drift: the PCI mapping has no entry for {props['entry']['path']} of {props['node']} any more"
            )
            return ReadResult("", {})
        if not _equal(ours, entry_of(props)):
            tell(f"{name}: drift: the PCI mapping's entry is {ours} instead of {entry_of(props)}")
        return ReadResult(id_, {**props, "found": entry_of(props) if _equal(ours, entry_of(props)) else ours})

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        replaces = [key for key in IDENTITY if olds.get(key) != news.get(key)]
        changed = bool(replaces) or olds.get("entry") != news.get("entry") or olds.get("found") != entry_of(news)
        return DiffResult(changes=changed, replaces=replaces, stables=[], delete_before_replace=False)

    def update(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> UpdateResult:
        _write(self.api(news), news, olds["entry"]["path"])
        return UpdateResult({**news, "found": entry_of(news)})

    def delete(self, _id: str, props: dict[str, Any]) -> None:
        from homelab.remote.proxmox.errors import ChangedMeanwhileError, UnansweredError

        api = self.api(props)
        try:
            _remove(api, props)
        except (ChangedMeanwhileError, UnansweredError):
            _remove(api, props)


class PciMappingRecordProvider(ApiProvider):
    """What a card's entry was before. Inputs: host, node, mapping, path (of the card, when it was recorded).

    It is noted on the host as well (homelab/remote/ledger.py), so that a stack whose state was lost doesn't take our own entry for somebody's.
    """

    def create(self, props: dict[str, Any]) -> CreateResult:
        from homelab.remote.proxmox.errors import NotThereError

        name = props["mapping"]
        before, known = None, True
        try:
            mapping = self.api(props).get(f"cluster/mapping/pci/{name}", f"to read the mapping {name}")
            before = _ours(mapping["map"], props["node"], props["path"])
        except NotThereError:
            known = False
        # Without an entry of this card there is none of ours: what may be noted of an earlier one is over.
        noted = asyncio.run(
            _noted(self.host(props), props, {"before": before, "known": known}, keep=before is not None)
        )
        return CreateResult(_id(props), {**props, **noted})

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> DiffResult:
        # A card that is in another slot now has the same mapping, and what that was at first is still what comes back.
        replaces = [key for key in IDENTITY if olds.get(key) != news.get(key)]
        return DiffResult(changes=bool(replaces), replaces=replaces, stables=[], delete_before_replace=False)

    def delete(self, _id: str, props: dict[str, Any]) -> None:
        asyncio.run(_forgotten(self.host(props), props))


async def _noted(host: Host, props: dict[str, Any], about: dict[str, Any], *, keep: bool) -> dict[str, Any]:
    from homelab.remote import ledger, ssh

    name = ledger.of_mapping(props["node"], props["mapping"])
    async with ssh.connect(host) as session:
        if keep:
            return await ledger.keep(session, name, about)
        await ledger.note(session, name, about)
        return about


async def _forgotten(host: Host, props: dict[str, Any]) -> None:
    from homelab.remote import ledger, ssh

    async with ssh.connect(host) as session:
        await ledger.forget(session, ledger.of_mapping(props["node"], props["mapping"]))


def _id(props: dict[str, Any]) -> str:
    return f"{props['node']}/{props['mapping']}"


def entry_of(props: dict[str, Any]) -> str:
    """The entry as Proxmox VE writes it: properties in the order of their names."""
    entry = {"node": props["node"], **props["entry"]}
    return ",".join(f"{key}={entry[key]}" for key in sorted(entry) if entry[key] not in (None, ""))


def _parsed(entry: str) -> dict[str, str]:
    from homelab.properties import parse

    return parse("map", entry)


def _equal(one: str, other: str) -> bool:
    """The same entry? A description of it is somebody's own. A slot's first function, where the other has the slot, is the card, too:
    the one that a person chose.
    """
    first, second = _parsed(one), _parsed(other)
    if first["path"] == f"{second['path']}.0":
        first = {**first, "path": second["path"]}
    return {**first, "description": ""} == {**second, "description": ""}


def _ours(entries: list[str], node: str, path: str) -> str | None:
    from homelab.properties import overlap

    for entry in entries:
        found = _parsed(entry)
        if found.get("node") == node and overlap(found["path"], path):
            return entry
    return None


def _make(api: Api, props: dict[str, Any]) -> None:
    name = props["mapping"]
    api.post("cluster/mapping/pci", f"to create the PCI mapping {name}", id=name, map=[entry_of(props)])


def _made(api: Api, props: dict[str, Any]) -> bool:
    """Makes a mapping that wasn't there a moment ago; False where somebody, or a run of ours that was killed, was faster."""
    from homelab.remote.proxmox.errors import ApiError, UnansweredError

    try:
        _make(api, props)
    except UnansweredError:
        return False
    except ApiError as error:
        if "already defined" not in error.reason:
            raise
        return False
    return True


def _write(api: Api, props: dict[str, Any], old_path: str | None) -> None:
    """Puts the entry in. Somebody else's change in between is read anew, once."""
    from homelab.remote.proxmox.errors import ApiError, ChangedMeanwhileError, UnansweredError

    try:
        _write_once(api, props, old_path)
    except (ChangedMeanwhileError, UnansweredError):
        _write_once(api, props, old_path)
    except ApiError as error:
        if "already defined" not in error.reason:  # another node's resource was faster
            raise
        _write_once(api, props, old_path)


def _write_once(api: Api, props: dict[str, Any], old_path: str | None) -> None:
    from homelab.remote.proxmox.errors import NotThereError

    name, entry = props["mapping"], entry_of(props)
    path = f"cluster/mapping/pci/{name}"
    try:
        mapping = api.get(path, f"to read the mapping {name}")
    except NotThereError:
        _make(api, props)
        return
    entries = list(mapping["map"])
    ours = _ours(entries, props["node"], props["entry"]["path"])
    if ours is None and old_path is not None:
        ours = _ours(entries, props["node"], old_path)
    _require_free(props, [other for other in entries if other != ours])
    if ours is None or not _equal(ours, entry):
        kept = [other for other in entries if other != ours]
        api.put(path, f"to change the PCI mapping {name}", map=[*kept, entry], digest=mapping["digest"])


def _require_free(props: dict[str, Any], others: list[str]) -> None:
    from homelab.errors import HomelabError

    taken = next((one for one in others if _parsed(one).get("node") == props["node"]), None)
    if taken is not None:
        raise HomelabError(
            wanted=f"the PCI mapping {props['mapping']} for {props['entry']['path']} of {props['node']}",
            found=f"there is one of that name, for another device of this node: {taken}",
            why="a VM with it would get either of the two; it isn't ours to change",
            next="choose another name with gpus.<gpu>.mapping, or remove that entry (Datacenter -> Resource Mappings)",
        )


def _remove(api: Api, props: dict[str, Any]) -> None:
    """Takes the entry away, or puts back the one that stood there; somebody's own is left alone."""
    from homelab.remote.proxmox.errors import NotThereError

    name, before = props["mapping"], props.get("before")
    path, wanted = f"cluster/mapping/pci/{name}", f"to remove {props['node']}'s entry from the PCI mapping {name}"
    try:
        mapping = api.get(path, wanted)
    except NotThereError:
        return
    entries = list(mapping["map"])
    ours = _ours(entries, props["node"], props["entry"]["path"])
    if ours is None or (before is not None and _equal(ours, before)):
        return
    left = [other for other in entries if other != ours] + ([before] if before else [])
    if left:
        api.put(path, wanted, map=left, digest=mapping["digest"])
    else:
        api.delete(path, wanted)


class PciMapping(Resource, module="homelab", name="PciMapping"):
    """The dynamic resource. Output ``mapping``: its id."""

    mapping: pulumi.Output[str]

    def __init__(self, name: str, inputs: dict[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(PciMappingProvider(), name, {**inputs, "found": None}, opts)


class PciMappingRecord(Resource, module="homelab", name="PciMappingRecord"):
    """The dynamic resource. Outputs: ``before``: the entry as it was, or None; ``known``: was there such a mapping?"""

    before: pulumi.Output[str | None]
    known: pulumi.Output[bool]

    def __init__(self, name: str, inputs: dict[str, Any], opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(PciMappingRecordProvider(), name, {**inputs, "before": None, "known": None}, opts)
