"""What is done on this host that a restart would cut off: backups, migrations, other tasks, actions of HA,
installations of packages. What another node does to this one isn't seen: it fails there, where the guest stays.

Nothing here can be opened by a setting: it ends by itself, or a user has to look at it. What can't be read may say that
something runs.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import time

from remote_scripts.cluster import ha
from remote_scripts.pve import api, guest_tasks
from remote_scripts.pve.pmxcfs import Node
from remote_scripts.tools.errors import Failure, in_words
from remote_scripts.tools.system import System

with contextlib.suppress(ImportError):  # on Windows, where the program has the types of layers alone
    import fcntl

_BACKUP_LOCK = "/run/vzdump.lock"
# Of apt, of dpkg, and of a whole run of unattended-upgrades, which lets go of the others between its steps.
_PACKAGE_LOCKS = ("/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock", "/run/unattended-upgrades.lock")
# Of a service of HA, at rest. Any other state passes; who is frozen would be shut down neither by HA nor by this host.
_AT_REST = ha.LEFT_ALONE - {"freeze"} | {"started", "queued"}
# Of a service of any node: it may be on its way to this one.
_ON_ITS_WAY = frozenset(("migrate", "relocate", "recovery", "fence", "request_start_balance"))
# A node goes down once HA has moved all its guests to other nodes. It waits without an end for one that can't leave
# (PVE::HA::LRM, shutdown_request), such as one with a card. With any other policy HA stops its guests here.
_MIGRATES = re.compile(r"^ha:(?:.*,)?\s*shutdown_policy=migrate\s*(?:,|$)", re.MULTILINE)


def at_work(system: System, node: Node) -> str:
    """What is at work here, or can't be told; empty: nothing.

    :raises Failure: what HA does at a restart can't be read.
    """
    for ask in (_task, _backup, _installation):
        try:
            reason = ask(system)
        except (Failure, OSError) as error:
            reason = f"it isn't known what is at work here: {in_words(error)}"
        if reason:
            return reason
    return _of_ha(system, node)


def _task(system: System) -> str:
    """One whose process died stays in the list."""
    for task in api.of(system).get("/tasks", source="active", limit=guest_tasks.MOST) if system.run.has("qm") else ():
        is_over = "endtime" in task or _started_at(system, task["pid"]) != task["pstart"]
        if not is_over and task["type"] not in guest_tasks.CONSOLES:
            since = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(task["starttime"]))
            return f"the task {task['type']} {task['id']} runs here, since {since}, of {task['user']}"
    return ""


def _started_at(system: System, process: int) -> int | None:
    """In clock ticks since the boot; a command's name may hold blanks and brackets."""
    fields = (system.files.read(f"/proc/{process}/stat") or b"").decode("ascii", "replace").rpartition(") ")[2].split()
    return int(fields[19]) if len(fields) > 19 and fields[19].isdecimal() else None


def _backup(system: System) -> str:
    """vzdump holds its lock from the first guest to the last, also where no task shows it."""
    if system.files.exists(_BACKUP_LOCK) and system.work.is_locked(_BACKUP_LOCK):
        return f"a backup (vzdump) runs here: it holds {_BACKUP_LOCK}"
    return ""


def _installation(system: System) -> str:
    """These locks are fcntl(2)'s (dpkg's frontend.txt): flock(2) doesn't see them, and the files always lie there. To
    ask takes none.
    """
    question = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    for path in filter(system.files.exists, _PACKAGE_LOCKS):
        with system.files.at(path).open("rb") as file:
            kind, _, _, _, process = struct.unpack("hhqqi", fcntl.fcntl(file, fcntl.F_GETLK, question))
        if kind != fcntl.F_UNLCK:
            name = system.files.line(f"/proc/{process}/comm")
            return f"packages are being installed here: process {process} ({name}) holds {path}"
    return ""


def _of_ha(system: System, node: Node) -> str:
    """Without services HA isn't asked. (An /etc/pve that isn't there on a node of a cluster is cluster.py's.)"""
    try:
        if not ha.has_services(system, node):
            return ""
    except Failure as failure:
        return (
            f"/etc/pve doesn't answer (pve-cluster.service), so it isn't known whether HA is at work: {failure.found}"
        )
    try:
        manager = ha.status(system)
    except ha.NoAnswerError as error:
        return f"`ha-manager status` doesn't say what HA is doing: {str(error)[:200]}".replace("\n", " ")
    migrates = _MIGRATES.search(system.files.need_text("/etc/pve/datacenter.cfg"))
    for service in manager.services:
        if service.state in _ON_ITS_WAY or (service.node == node.name and service.state not in _AT_REST):
            return f"HA is at work on {service.id} of {service.node}: {service.state}"
        if migrates and service.node == node.name and service.state not in ha.LEFT_ALONE:
            return f"HA would move {service.id} away before the restart (shutdown_policy=migrate)"
    return ""
