"""Moving a guest to another node of a cluster: /nodes/{node}/qemu/{vmid}/migrate. Messages and order of checks are PVE::QemuMigrate's.

A VM that runs goes on running: its start stays the same. A disk that isn't on a shared storage keeps it where it is: nothing is copied here. A server
in a VM isn't carried along. What HA has is moved by its agent (ha_manager.py), containers too.
"""

from __future__ import annotations

import re
import shutil
from typing import Any

from lab.host.boot import mark_running
from lab.host.state import HostState

from . import ha, ha_config, lxc, passthrough
from .call import Call, unheard
from .errors import Died, bad_parameters
from .guest_config import GuestConfig
from .guests import Guest, require_unlocked
from .mapping import Mappings
from .quorum import Members, require_cluster_ready
from .storage import Storages
from .tasks import TaskLog, Work

_DISK = re.compile(r"(?:ide\d|sata\d|scsi\d+|virtio\d+|efidisk0|tpmstate0|unused\d+)")
#: What is of the node besides cards: `spice` and sockets are made anew on the other one.
_DEVICE = re.compile(r"(?:usb\d+|serial\d+|parallel\d+|ivshmem|virtiofs\d+)")
_ANYWHERE = re.compile(r"spice(,.*)?|host=spice(,.*)?|socket")
_SHARED_KINDS = frozenset({"nfs", "cifs", "cephfs", "rbd", "iscsi", "iscsidirect", "pbs"})
#: Between the first page of memory and the last.
_SECONDS = 0.1


def migrate(call: Call) -> str:
    """POST .../migrate."""
    guest, target = call.guest("qemu"), str(call.parameters["target"])
    if target == call.host.node:
        raise bad_parameters({"target": "target is local node."})
    require_cluster_ready(call.host)
    if target not in Members(call.host).nodes:
        raise Died(f"no such cluster node '{target}'")
    guest.config()
    if guest.running and not call.parameters.get("online"):
        raise Died("can't migrate running VM without --online")
    if ha.shown(guest)["managed"]:
        return call.start("hamigrate", str(guest.vmid), lambda log: _asked(guest, target, log))
    return call.start("qmigrate", str(guest.vmid), lambda log: vm_to_node(guest, target, log))


def _asked(guest: Guest, target: str, log: TaskLog) -> Work:
    log(f"Requesting HA migration for VM {guest.vmid} to node {target}")
    ha_config.queue(guest.host, f"migrate {ha_config.sid_of(guest)} {target}")
    yield 0.0


def vm_to_node(guest: Guest, target: str, log: TaskLog) -> Work:
    """A VM's migration, as it runs or off.

    Raises:
        ApiError: something keeps it here; the log says what.
    """
    config = guest.config()
    if why := _against(guest, config, target):
        log(f"ERROR: migration aborted (duration 00:00:00): {why}")
        raise Died("migration aborted")
    log(f"starting migration of VM {guest.vmid} to node '{target}' ({Members(guest.host).nodes[target]['ip']})")
    config.values["lock"] = "migrate"
    guest.save(config)
    yield _SECONDS
    config = guest.config()
    del config.values["lock"]
    guest.save(config)
    there = _peer(guest.host, target)
    if there is None:
        log("ERROR: migration aborted: Can't connect to destination address using public key")
        raise Died("migration aborted")
    _move(guest, Guest(there, "qemu", guest.vmid), config)
    log("migration finished successfully (duration 00:00:01)")


def container_to_node(guest: Guest, target: str, log: TaskLog) -> Work:
    """A container's way to another node: one that runs is shut down, and nothing starts it there (PVE::HA::Resources::PVECT, PVE::LXC::Migrate).

    Raises:
        ApiError: a folder of this node keeps it here, or the other node can't be reached.
    """
    config = guest.config()
    require_unlocked(guest, config)
    for name, value in sorted(config.values.items()):
        if re.fullmatch(r"mp\d+", name) and re.match(r"(?:volume=)?/", value) and ",shared=1" not in value:
            raise Died(f"cannot migrate local bind mount point '{name}'")
    if guest.running:
        yield from lxc.shutdown_work(guest, log, ha.SHUTDOWN_SECONDS, force=True)
    yield _SECONDS
    there = _peer(guest.host, target)
    if there is None:
        raise Died("migration aborted")
    _move(guest, Guest(there, "lxc", guest.vmid), config)
    log("migration finished successfully (duration 00:00:01)")


def _against(guest: Guest, config: GuestConfig, target: str) -> str:
    """What keeps a VM where it is, in the words of the task; nothing where it may go."""
    if lock := config.values.get("lock"):
        return f"VM is locked ({lock})"
    mapped = _mapped(guest, config)
    if local := _local(guest, config):
        return f"can't migrate VM which uses local devices: {', '.join(local)}"
    if missing := _missing(guest.host, mapped, target):
        return f"can't migrate to '{target}': missing mapped devices {', '.join(missing)}"
    fixed = [f"{name}:{about['name']}" for name, about in mapped.items() if not about.get("live-migration")]
    if guest.running and fixed:
        return f"can't live migrate running VM which uses following mapped devices: {', '.join(fixed)}"
    if disks := _local_disks(guest.host, config):
        return f"can't live migrate attached local disks without with-local-disks option ({', '.join(disks)})"
    if _peer(guest.host, target) is None:
        return "Can't connect to destination address using public key"
    return ""


def _move(guest: Guest, there: Guest, config: GuestConfig) -> None:
    """Let another node have a guest, its system and its start."""
    vmid, running = str(guest.vmid), guest.running
    if running:
        mark_running(guest.host, vmid, False)
        passthrough.cleanup(guest.host, guest.vmid, config.values, unheard)
    with guest.host.changing() as machine:
        entry = machine["guests"].pop(vmid, {})
    guest.path.unlink()
    if guest.folder.exists():
        there.folder.parent.mkdir(exist_ok=True)
        shutil.move(guest.folder, there.folder)
    there.save(config)
    if running:
        there.set_running(True)
        passthrough.attach(there.host, there.vmid, there.pid, config.values, unheard)
    with there.host.changing() as machine:
        machine["guests"][vmid] |= entry


def _peer(host: HostState, name: str) -> HostState | None:
    """Another node; None for one that isn't online."""
    members = Members(host)
    online = members.cluster is not None and members.nodes[name]["online"]
    return members.cluster.peers[name].host if members.cluster is not None and online else None


def _mapped(guest: Guest, config: GuestConfig) -> dict[str, dict[str, Any]]:
    """The cards that a mapping stands for, by their option."""
    mappings = Mappings(guest.host).all
    found: dict[str, dict[str, Any]] = {}
    for name, option in passthrough.hostpci_options(config.values).items():
        if mapping := option.get("mapping"):
            able = mapping in mappings and mappings[mapping].flags.get("live-migration-capable")
            found[name] = {"name": mapping, **({"live-migration": 1} if able else {})}
    return found


def _missing(host: HostState, mapped: dict[str, dict[str, Any]], node: str) -> list[str]:
    mappings = Mappings(host).all
    return [
        key for key, about in mapped.items() if about["name"] not in mappings or not mappings[about["name"]].of_node(node)
    ]  # fmt: skip


def _local(guest: Guest, config: GuestConfig) -> list[str]:
    cards = [name for name, option in passthrough.hostpci_options(config.values).items() if "mapping" not in option]
    others = [
        name for name, value in config.values.items() if _DEVICE.fullmatch(name) and not _ANYWHERE.fullmatch(value)
    ]
    return [*cards, *sorted(others)]


def _local_disks(host: HostState, config: GuestConfig) -> list[str]:
    storages, found = Storages(host).all, list[str]()
    for name, value in config.values.items():
        volume = value.partition(",")[0]
        if not _DISK.fullmatch(name) or volume == "none" or ",shared=1" in value:
            continue
        storage = storages.get(volume.partition(":")[0])
        if storage is None or not (storage.kind in _SHARED_KINDS or storage.settings.get("shared") == "1"):
            found.append(volume)
    return sorted(found)
