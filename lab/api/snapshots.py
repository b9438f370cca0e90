"""Snapshots of VMs and containers: sections in the guest's configuration; disks' contents aren't simulated."""

from __future__ import annotations

import re
import uuid

from lab.host.state import HostState

from . import agent, lxc, qemu, qemu_power
from .call import Call
from .errors import Died
from .guest_config import Kind, Section
from .guests import await_config_lock, require_unlocked
from .storage import Storages
from .tasks import TaskLog, Work

_VOLUMES: dict[Kind, re.Pattern[str]] = {
    "qemu": re.compile(r"(?:ide|sata|scsi|virtio)\d+|efidisk0|tpmstate0"),
    "lxc": re.compile(r"rootfs|mp\d+"),
}
_PREFIX: dict[Kind, str] = {"qemu": "qm", "lxc": "vz"}


def create(call: Call, kind: Kind) -> str:
    """POST .../snapshot."""
    guest, name = call.guest(kind), call.parameters["snapname"]
    if guest.running:
        call.has_no("vmstate")

    def work(log: TaskLog) -> Work:
        await_config_lock(guest, log)
        config = guest.config()
        require_unlocked(guest, config)
        if name in config.snapshots:
            raise Died(f"snapshot name '{name}' already used")
        if not _can_be_taken(call.host, _volumes(config.values, kind)):
            raise Died("snapshot feature is not available")
        section = config.current.copy()
        section.values.pop("description", None)
        described = {"description": text} if (text := call.parameters.get("description")) else {}
        section.values |= {"snaptime": str(call.host.clock())} | described
        # Whoever ends it here leaves both behind: a guest that is locked, and a snapshot that isn't one yet.
        config.snapshots[name] = section
        section.values["snapstate"] = "prepare"
        config.values["lock"] = "snapshot"
        guest.save(config)
        if guest.running and kind == "qemu" and qemu.agent_enabled(config.values) and not agent.answers(guest):
            log("skipping guest filesystem freeze - agent configured but not running?")
        yield 0.05
        config = guest.config()
        del config.snapshots[name].values["snapstate"], config.values["lock"]
        config.values["parent"] = name
        guest.save(config)

    return call.start(f"{_PREFIX[kind]}snapshot", str(guest.vmid), work)


def _volumes(values: dict[str, str], kind: Kind) -> list[str]:
    return [v for k, v in values.items() if _VOLUMES[kind].fullmatch(k) and "media=cdrom" not in v]


def _can_be_taken(host: HostState, volumes: list[str]) -> bool:
    """Whether every one has snapshots. A folder of the host (a bind mount) has none (PVE::Storage::volume_has_feature)."""
    storages = Storages(host)
    for volume in volumes:
        name, file = volume.partition(",")[0].partition(":")[::2]
        if volume.startswith("/") or not (storages.get(name).has_snapshots or file.endswith(".qcow2")):
            return False
    return True


def rollback(call: Call, kind: Kind) -> str:
    """POST .../snapshot/{snapname}/rollback: the configuration of then; a running guest is stopped. With `start` a task of its own starts it."""
    guest, name, power = call.guest(kind), call.parameters["snapname"], qemu_power if kind == "qemu" else lxc

    def work(log: TaskLog) -> Work:
        config = guest.config()
        if name not in config.snapshots:
            raise Died(f"snapshot '{name}' does not exist")
        require_unlocked(guest, config)
        yield from power.stop_work(guest, log)
        config = guest.config()
        then: Section = config.snapshots[name].copy()
        for key in ("snaptime", "snapstate", "description"):
            then.values.pop(key, None)
        if "description" in config.values:
            then.values["description"] = config.values["description"]
        then.values["parent"] = name
        if "vmgenid" in then.values:
            then.values["vmgenid"] = str(uuid.uuid4())  # the guest is to see that it was gone back
        config.current, config.pending, config.pending_delete, config.pending_raw = then, {}, [], []
        guest.save(config)
        if call.parameters.get("start"):
            power.start(call)

    return call.start(f"{_PREFIX[kind]}rollback", str(guest.vmid), work)
