"""A VM that is migrated while it is off, to a node that has its cards: what stands against it, and how it is said. Pure.

Proxmox VE shuts nothing down for that, and looks at most of this only once the VM is off (PVE::QemuMigrate, scan_local_volumes). So all of it is
looked at before. Disks of the old node's own storages are copied by an offline migration without being asked to; `with-local-disks` is for a VM that runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from homelab.errors import HomelabError
from homelab.host import ha
from homelab.host.facts import HostFacts
from homelab.properties import parse
from homelab.settings import Host

# Types of storage from which an offline migration copies (PVE::QemuMigrate).
_COPIED = frozenset({"dir", "btrfs", "zfspool", "lvmthin", "lvm"})
_TARGETS = _COPIED | {"nfs", "cifs", "rbd"}
_FILES = frozenset({"dir", "btrfs", "nfs", "cifs"})
_DISK = re.compile(r"(?:ide|sata|scsi|virtio)\d+|efidisk0|tpmstate0|unused\d+")
_CLONE = re.compile(r"(?:^|[/:])base-\d+-disk[^/]*/")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

StorageRows = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class OfflineMigration:
    """What Proxmox VE says of such a VM.

    ``name``, ``vmid``, ``storage``: in the settings, the last for `migrateStorage` (empty: none); ``node``, ``target``: from where, to where;
    ``said``: GET .../migrate, empty where the VM is locked; ``here``, ``there``: the nodes' storages by name; ``bridges_here``, ``bridges_there``: those that the
    API's user may see; ``jobs``: its replication jobs; ``memory``: of the target in bytes, 0: not known; ``under_way``: the task of its migration that an
    earlier run began; ``by_ha``: is it under HA?
    """

    name: str
    vmid: int
    node: str
    target: str
    config: Mapping[str, str]
    running: bool
    storage: str = ""
    said: Mapping[str, Any] = field(default_factory=dict)
    here: StorageRows = field(default_factory=dict)
    there: StorageRows = field(default_factory=dict)
    bridges_here: frozenset[str] = frozenset()
    bridges_there: frozenset[str] = frozenset()
    jobs: tuple[str, ...] = ()
    memory: int = 0
    under_way: str = ""
    by_ha: bool = False

    @property
    def label(self) -> str:
        """The VM for people."""
        return f"VM {self.vmid} ({self.config.get('name', self.name)})"

    @property
    def free_config(self) -> dict[str, str]:
        """Its configuration, without the lock of a migration that an earlier run began."""
        return {key: value for key, value in self.config.items() if key != "lock" or not self.under_way}

    @property
    def disks(self) -> list[MovingDisk]:
        """What lies on storages of the old node alone."""
        return [self._disk(one) for one in self.said.get("local_disks") or []]

    def _disk(self, said: Mapping[str, Any]) -> MovingDisk:
        volume = str(said.get("volid", ""))
        options = [
            value
            for key, value in self.config.items()
            if _DISK.fullmatch(key) and value.split(",")[0].removeprefix("file=") == volume
        ]
        shown = next((found[1] for one in options if (found := re.search(r"\bsize=(\d+[KMGT]?)", one))), "")
        is_cd = bool(int(said.get("cdrom") or 0)) or any("media=cdrom" in one for one in options)
        return MovingDisk(
            volume=volume,
            size=int(said.get("size") or 0) or _bytes(shown),
            is_cd=is_cd and not volume.endswith("cloudinit") and "-cloudinit." not in volume,
            in_snapshots=bool(said.get("referenced_in_snapshot")),
            is_memory=bool(int(said.get("is_vmstate") or 0)),
            storage=self.storage or volume.partition(":")[0],
        )


@dataclass(frozen=True)
class MovingDisk:
    """A volume that is copied. ``size`` in bytes, 0: not known; ``is_cd``: an image in a drive; ``is_memory``: of a snapshot with RAM; ``storage``: where it goes to."""

    volume: str
    size: int
    is_cd: bool
    in_snapshots: bool
    is_memory: bool
    storage: str


def against(move: OfflineMigration, host: Host, facts: HostFacts) -> list[HomelabError]:
    """What stands against it, all at once. A lock of the VM isn't among it (`vm.config.check`).

    :param host: the target, in the settings; ``facts``: a reading of it.
    """
    if not move.said:
        return []
    said = [
        *_devices(move, host),
        *_storages(move),
        *_copies(move),
        *_room(move),
        *_network(move),
        *_ha(move, facts),
        *_memory(move),
    ]
    if move.jobs:
        said.append(
            (
                f"it is replicated (job {', '.join(move.jobs)})",
                "its jobs and the copies on other nodes belong to the node that it is on",
                f"remove the job (`pvesr delete {move.jobs[0]}`; Datacenter -> Replication), and set it up again on {move.target}",
            )
        )
    return [
        HomelabError(
            wanted=f"{move.label} migrated from {move.node} to {move.target}, which has its cards (vms.{move.name}.migrate: offline)",
            found=found,
            why=f"{why}; nothing was changed, and the VM stays as it is",
            next=f"{step}; then run `pulumi up` again",
        )
        for found, why, step in said
    ]


Reasons = Iterable[tuple[str, str, str]]


def _devices(move: OfflineMigration, host: Host) -> Reasons:
    mapped = set(move.said.get("mapped-resources") or move.said.get("mapped-resource-info") or ())
    local = sorted(one for one in move.said.get("local_resources") or () if one not in mapped)
    if local:
        named = ", ".join(f"{key}: {move.config.get(key, '')}" for key in local)
        yield (
            f"it has devices of {move.node}: {named}",
            "Proxmox VE migrates no VM with a device of its node, also not while it is off",
            f"take them out while it is off (`qm set {move.vmid} --delete {local[0]}`)",
        )
    # What this run gives the target itself counts as there: the mappings of its cards are written before the VM moves.
    ours = {host.mapping_of(gpu) for gpu, about in host.gpus.items() if about.may_leave}
    lacking = [
        key
        for key in _not_allowed(move).get("unavailable-resources") or ()
        if parse(key, move.config.get(key, "")).get("mapping", "") not in ours
    ]
    if lacking:
        named = ", ".join(f"{key}: {move.config.get(key, '')}" for key in lacking)
        yield (
            f"it has devices by mappings that have no entry for {move.target}: {named}",
            "it can't start there without them",
            f"add an entry for {move.target} to the mapping (Datacenter -> Resource Mappings), or take the device out of the VM",
        )


def _not_allowed(move: OfflineMigration) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (move.said.get("not_allowed_nodes") or {}).get(move.target) or {}
    return found


def _storages(move: OfflineMigration) -> Reasons:
    own = {disk.volume.partition(":")[0] for disk in move.disks}
    # Of what is copied, `_copies` says where it goes.
    for name in sorted(set(_not_allowed(move).get("unavailable_storages") or ()) - own):
        yield (
            f"it has disks on {name}, which {move.target} doesn't have",
            "the VM would be off, with its disks out of reach",
            f"make {name} available there (Datacenter -> Storage -> {name}: Nodes, Enable), or move these disks to another storage",
        )


def _copies(move: OfflineMigration) -> Reasons:
    for disk in move.disks:
        source, target = move.here.get(disk.volume.partition(":")[0], {}), move.there.get(disk.storage)
        kind = str(source.get("type", ""))
        if disk.is_cd:
            yield (
                f"{disk.volume} is in one of its CD drives, and lies on {move.node} alone",
                "Proxmox VE doesn't copy such an image, and migrates no VM with one",
                "eject it (Hardware of the VM, CD/DVD Drive: no media)",
            )
            continue
        if _CLONE.search(disk.volume):
            yield (
                f"{disk.volume} is a linked clone",
                "its template's disk is on the old node, and Proxmox VE doesn't copy it along",
                "make a full clone of the VM",
            )
        elif kind and kind not in _COPIED:
            yield (
                f"{disk.volume} lies on a storage of {move.node} alone, of the type {kind}",
                "Proxmox VE can't copy from such a storage",
                "move the disk to another storage",
            )
        elif target is None or not _takes_disks(target):
            yield (
                f"{disk.volume} lies on a storage of {move.node} alone, and {_why_not(disk.storage, target, move.target)}",
                "an offline migration copies it there",
                f"name a storage of {move.target} that takes disk images in vms.{move.name}.migrateStorage"
                + (f" ({', '.join(_fit(move))})" if _fit(move) else ""),
            )
        elif kind and not _fits(kind, str(target["type"]), disk):
            snapshots = " with its snapshots" if disk.in_snapshots else ""
            yield (
                f"{disk.volume}{snapshots} would be copied from a storage of the type {kind} to {disk.storage}, of the type {target['type']}",
                "Proxmox VE copies snapshots only between ZFS pools, between Btrfs, and as qcow2 files; and from and to ZFS pools nothing but what is on one",
                f"remove its snapshots (`qm listsnapshot {move.vmid}`)"
                if disk.in_snapshots and _fits(kind, str(target["type"]), None)
                else f"name another storage in vms.{move.name}.migrateStorage",
            )


def _takes_disks(row: Mapping[str, Any]) -> bool:
    return bool(row.get("enabled", 1) and row.get("active", 1) and "images" in str(row.get("content", "")).split(","))


def _why_not(storage: str, row: Mapping[str, Any] | None, node: str) -> str:
    if row is None:
        return f"{node} has no {storage}, or the API's user may not see it"
    if "images" not in str(row.get("content", "")).split(","):
        return f"{storage} takes no disk images"
    return f"{storage} is not {'enabled' if not row.get('enabled', 1) else 'active'} on {node}"


def _fit(move: OfflineMigration) -> list[str]:
    return sorted(name for name, row in move.there.items() if _takes_disks(row) and row.get("type") in _TARGETS)


def _fits(source: str, target: str, disk: MovingDisk | None) -> bool:
    """Have both storages a form in which a disk goes from one to the other? (PVE::Storage, volume_transfer_formats). None: one without snapshots."""
    if "zfspool" in (source, target):
        return source == target
    if disk is None or not disk.in_snapshots or disk.is_memory:
        return True
    if source == target == "btrfs":
        return True
    return disk.volume.endswith(".qcow2") and source in _FILES and target in _FILES


def _room(move: OfflineMigration) -> Reasons:
    for storage, size in _by_storage(move).items():
        row = move.there.get(storage, {})
        free = row.get("avail")
        if free is not None and _takes_disks(row) and size > int(free):
            yield (
                f"{gib(size)} of its disks would be copied to {storage}, which has {gib(int(free))} left on {move.target}",
                "the copy would fill that storage, and what else is on it",
                f"make room there, or name another storage in vms.{move.name}.migrateStorage",
            )


def _by_storage(move: OfflineMigration) -> dict[str, int]:
    found: dict[str, int] = {}
    for disk in move.disks:
        if not disk.is_cd:
            found[disk.storage] = found.get(disk.storage, 0) + disk.size
    return found


def _bridges(move: OfflineMigration) -> dict[str, str]:
    """The VM's network cards' bridges: option -> bridge."""
    cards = {key: parse(key, value) for key, value in move.config.items() if re.fullmatch(r"net\d+", key)}
    return {key: one["bridge"] for key, one in cards.items() if one.get("bridge")}


def _network(move: OfflineMigration) -> Reasons:
    # What the user may see is the same on both nodes: one that it sees on the old node alone isn't there.
    for key, bridge in _bridges(move).items():
        if bridge in move.bridges_here and bridge not in move.bridges_there:
            yield (
                f"{key} is on the bridge {bridge}, which {move.target} doesn't have",
                "it wouldn't start there",
                f"make {bridge} on {move.target} (its Network page), or give {key} a bridge that both have",
            )


def _ha(move: OfflineMigration, facts: HostFacts) -> Reasons:
    if not move.by_ha and ha.service(facts, "vm", move.vmid) is None:
        return
    if ha.given_up(facts, move.vmid):
        yield (
            "HA has it in the state error",
            "HA moves and starts nothing in that state",
            f"see why (`journalctl -u pve-ha-lrm`), then `ha-manager set vm:{move.vmid} --state disabled`",
        )
    if why := ha.held_elsewhere(facts, move.vmid, move.target):
        yield (
            f"it is under HA, and {why}",
            "HA would take it away from its cards again",
            f"add {move.target} to it, or take the VM out (Datacenter -> HA)",
        )
    named = ", ".join(sorted(disk.volume for disk in move.disks))
    if named:
        yield (
            f"it is under HA, with disks on storages of {move.node} alone: {named}",
            "HA moves the configuration of a VM that is off, and nothing else: its disks would stay behind",
            f"move the disks to a shared storage, or take it out of HA (`ha-manager remove vm:{move.vmid}`)",
        )
    for one in _not_allowed(move).get("blocking-ha-resources") or ():
        yield (
            f"it is under HA, and a rule keeps it apart from {one.get('sid', 'another one')} on {move.target}",
            "HA doesn't let it go there",
            "change that rule (Datacenter -> HA -> Affinity Rules)",
        )


def _memory(move: OfflineMigration) -> Reasons:
    found = re.match(r"(?:current=)?(\d+)", move.config.get("memory", ""))
    if found and move.memory and int(found[1]) << 20 > move.memory:
        yield (
            f"it has {gib(int(found[1]) << 20)} of memory, and {move.target} has {gib(move.memory)} in all",
            "a card pins all of the VM's memory: it wouldn't start there",
            "give it less (Hardware of the VM, Memory), or let it go to another node",
        )


def described(move: OfflineMigration) -> list[str]:
    """The preview's lines."""
    steps = [f"migrated to {move.target} while it is off"]
    if move.under_way:
        steps = [f"its migration to {move.target}, which an earlier run began, is waited for"]
    elif move.running:
        steps = ["shut down", *steps]
    ends = "started there with its cards" if move.running else "stays off unless an earlier run has shut it down"
    lines = [f"  {move.label} is on {move.node}, which has none of its cards: {', '.join([*steps, ends])}"]
    sizes = _by_storage(move)
    for storage, size in sorted(sizes.items()):
        unknown = " and disks whose size isn't known" if any(not one.size for one in move.disks) else ""
        lines.append(
            f"    {gib(size)}{unknown} of disks of {move.node} alone are copied to {storage} on {move.target}; the VM is off meanwhile"
        )
    if move.said and not sizes:
        lines.append("    no disk is copied: all of them are on storages that both nodes have")
    if move.by_ha:
        lines.append("    HA does it, as it is one of its services")
    hidden = sorted({one for one in _bridges(move).values() if one not in move.bridges_here})
    if hidden:
        lines.append(f"    whether {move.target} has {', '.join(hidden)} isn't known: the API's user may not see it")
    return [*lines, f"    a destroy leaves it on {move.target}"]


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / (1 << 30):.1f} GiB".replace(".0 GiB", " GiB")


def _bytes(text: str) -> int:
    if not text:
        return 0
    return int(text) if text.isdigit() else int(text[:-1]) * _UNITS[text[-1]]
