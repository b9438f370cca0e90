"""What is in /etc/pve, Proxmox VE's cluster file system, and this node in it. That it doesn't answer is never taken for
"nothing there". Each call has an end: /etc/pve hangs where its daemon does.

It replaces no file at once for its readers: while a file is renamed over another one, opening that gives ENOENT for
some 0.3 ms (seen on pmxcfs 9.1). So a file is absent that isn't there by several looks, nor in its folder's listing.

It refuses chmod and chown, and gives every file the rights that a configuration has; a rename takes another file's
place. Without a quorum it can only be read.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from remote_scripts.tools import disk
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System
from remote_scripts.tools.time_limit import within_limit

PVE_LXC, NODES = "/etc/pve/lxc", "/etc/pve/nodes"
#: What this program notes on all nodes.
HOMELAB = "/etc/pve/homelab"
_LOCAL = "/etc/pve/local"
# All of /etc/pve. What pmxcfs has written last stands in the second one, its log (SQLite's WAL mode), which it doesn't
# flush itself (synchronous=NORMAL; pve-cluster, database.c).
_DATABASE = ("/var/lib/pve-cluster/config.db", "/var/lib/pve-cluster/config.db-wal")


@dataclass(frozen=True)
class Node:
    """This node. `name`: empty where /etc/pve isn't there, or doesn't answer; `clustered`: one of several, or of a
    cluster that may have several: then corosync's own copy says it, which a host that has left its cluster may keep.
    """

    name: str
    clustered: bool


def this_node(system: System) -> Node:
    """Asks /etc/pve."""
    files = system.files
    with suppress(OSError):
        if name := files.target(_LOCAL).rpartition("/")[2]:
            return Node(name, time_of(system, "/etc/pve/corosync.conf") is not None)
    return Node("", files.exists("/etc/corosync/corosync.conf"))


def need(system: System, wanted: str) -> str:
    """This node's name.

    :param wanted: what is to be seen, for an error.
    :raises Failure: /etc/pve isn't there: nothing is known then.
    """
    if name := this_node(system).name:
        return name
    raise Failure(
        f"to see {wanted}, in /etc/pve",
        "/etc/pve isn't there",
        "it has all guests, and what is noted of them; nothing was changed",
        "see `systemctl status pve-cluster` on the host, then run the same again",
    )


def time_of(system: System, path: str) -> float | None:
    """When a file was written, in seconds since 1970, by the clock of the node that has written it; None: no such file.

    :raises OSError: there is no answer.
    """
    where = system.files.at(path)
    return within_limit(lambda: disk.steady(where, lambda: where.stat().st_mtime))


def guest_ids(system: System, folder: str) -> list[str]:
    """The ids of the guests that have a configuration in a folder. A user's copy, such as 103-old.conf, is no guest.

    :raises Failure: it can't be read.
    """
    matches = (re.fullmatch(r"([1-9][0-9]*)\.conf", name) for name in system.files.need_names(folder))
    return sorted((match[1] for match in matches if match), key=int)


def guests(system: System) -> list[tuple[str, str, str]]:
    """Node, kind (qemu-server or lxc) and id of each guest of the cluster.

    :raises Failure: a folder can't be read.
    """
    folders = [(node, kind) for node in system.files.need_names(NODES) for kind in ("qemu-server", "lxc")]
    return [(node, kind, guest) for node, kind in folders for guest in guest_ids(system, f"{NODES}/{node}/{kind}")]


def note(system: System, path: str, content: bytes) -> None:
    """Writes a file in HOMELAB, on the disk when this returns; nothing: it goes, and with the last one the folder.

    :raises OSError: it can't be written.
    """
    if not this_node(system).name:  # else it would lie below /etc/pve, where nobody looks
        raise FileNotFoundError(errno.ENOENT, "/etc/pve isn't there")
    if content:
        for is_last in (False, False, True):
            within_limit(lambda: system.files.need_folder(HOMELAB))
            try:
                replace(system, path, content)
                break
            except FileNotFoundError:  # at that moment the folder went with another guest's last note
                if is_last:
                    raise
    else:
        within_limit(lambda: disk.remove(system.files.at(path)))
        tidy(system, path)
    flush(system)


def flush(system: System) -> None:
    """What was written in /etc/pve is on the disk: pmxcfs answers before its database is. To flush whole file systems
    would wait for all that is written to them, such as a VM's disk.

    :raises OSError: a disk doesn't take it.
    """
    if all(map(system.files.is_file, _DATABASE)):
        for path in _DATABASE:
            disk.flush(system.files.at(path))
    else:
        system.files.flush_all()


def replace(system: System, path: str, content: bytes) -> None:
    """Writes a file whole, by a name beside it that Proxmox VE's own writers use. Its caller has the lock: what
    writers that were killed have left is taken away.

    :raises OSError: it can't be written; it is as it was, but where this ends by its time (TimeoutError).
    """
    where = system.files.at(path)
    temporary = where.with_name(f"{where.name}.tmp.{os.getpid()}")

    def make() -> None:
        _remove_left(where)
        try:
            disk.Disk().make(temporary, content, 0o640)
        except OSError:
            _remove_left(where)
            raise

    def put() -> None:
        try:
            disk.Disk().rename(temporary, where)
        except OSError:
            _remove_left(where)
            raise

    # By itself: where the bytes come too late it doesn't get its name any more, as its caller has given up the lock.
    within_limit(make)
    within_limit(put)


def tidy(system: System, path: str) -> None:
    """Takes away what writers that were killed have left beside a file in HOMELAB, and the folder where it is empty.
    Its caller has the file's lock.
    """

    def remove() -> None:
        with suppress(OSError):
            _remove_left(system.files.at(path))
        with suppress(OSError):  # other files are there
            disk.remove_folder(system.files.at(HOMELAB))

    within_limit(remove)


def _remove_left(where: Path) -> None:
    for name in os.listdir(where.parent):
        if re.fullmatch(re.escape(where.name) + r"\.tmp\.[0-9]+", name):
            disk.remove(where.with_name(name))
