"""What is in /etc/pve, Proxmox VE's cluster file system, and this node in it. That it doesn't answer is never taken for
"nothing there". Each call has an end: /etc/pve hangs where its daemon does.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

from remote_scripts.shared.hanging import ended
from remote_scripts.tools import disk
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

PVE_LXC = "/etc/pve/lxc"
#: Proxmox VE takes no longer file.
_BYTES = 1 << 20
_LOCAL = "/etc/pve/local"


@dataclass(frozen=True)
class Node:
    """This node. `name`: empty where /etc/pve isn't there, or doesn't answer; `clustered`: one of several, or of a
    cluster that may have several: then corosync's own copy says it, which a host that has left its cluster may keep.
    """

    name: str
    clustered: bool


def this_node(system: System) -> Node:
    """Asks /etc/pve."""

    def ask() -> Node:
        try:
            name = os.readlink(system.files.at(_LOCAL)).rpartition("/")[2]
        except FileNotFoundError:
            return Node("", system.files.at("/etc/corosync/corosync.conf").exists())
        return Node(name, system.files.at("/etc/pve/corosync.conf").exists())

    try:
        return ended(ask)
    except OSError:
        return Node("", system.files.at("/etc/corosync/corosync.conf").exists())


def time_of(system: System, path: str) -> float | None:
    """When a file was written, in seconds since 1970, by the clock of the node that has written it; None: no such file.

    :raises OSError: there is no answer.
    """

    def ask() -> float | None:
        try:
            return system.files.at(path).stat().st_mtime
        except FileNotFoundError:
            return None

    return ended(ask)


def write(system: System, path: str, content: bytes) -> None:
    """A reader sees the old bytes or the new ones. Modes are the file system's own. What a run leaves that is cut short
    (PATH.new) the next one writes over.

    :raises OSError: it can't be written, such as without a quorum.
    """
    new, where = system.files.at(f"{path}.new"), system.files.at(path)

    def do() -> None:
        descriptor = disk.create(new, 0o640)
        try:
            disk.write(descriptor, content, new)
        finally:
            os.close(descriptor)
        disk.rename(new, where)

    ended(do)


def remove(system: System, path: str) -> None:
    """:raises OSError: it can't be removed; that it isn't there is no error."""
    ended(lambda: disk.remove(system.files.at(path)))


def take_lock(system: System, path: str) -> bool:
    """A lock of Proxmox VE's own kind (PVE::Cluster, cfs_lock): a folder, which one node alone can make. One whose
    maker was killed stays until its time is over, 120 s, and somebody asks for its end, which is what setting its time
    does.

    :returns: False: another node has it, or nothing can be written.
    """
    lock = system.files.at(path)

    def make() -> None:
        with suppress(FileExistsError):
            if not lock.parent.is_dir():
                disk.make_folder(lock.parent)
        disk.make_folder(lock)

    with suppress(OSError):
        ended(make)
        return True
    with suppress(OSError):
        ended(lambda: disk.touch(lock, 0))
    return False


def free_lock(system: System, path: str) -> None:
    """Gives such a lock back."""
    try:
        ended(lambda: disk.remove_folder(system.files.at(path)))
    except OSError:
        system.log.say(f"{path} stays for two minutes")


def content_of(system: System, path: str) -> bytes | None:
    """The bytes of a file; None: it isn't there.

    :raises Failure: it can't be read.
    """

    def read() -> bytes | None:
        try:
            with system.files.at(path).open("rb") as file:
                return file.read(_BYTES + 1)
        except FileNotFoundError:
            return None

    try:
        content = ended(read)
    except OSError as error:
        raise _unread(path, error.strerror or str(error)) from error
    if content is not None and len(content) > _BYTES:
        raise _unread(path, f"it is longer than {_BYTES} bytes, which Proxmox VE doesn't allow")
    return content


def _unread(path: str, found: str) -> Failure:
    return Failure(
        f"to read {path}",
        found,
        "what can't be read isn't known, and nothing is decided by it; nothing more was changed",
        "see on the host what keeps the service pve-cluster, whose file system it is, then run `pulumi up` again",
    )
