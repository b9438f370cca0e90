"""The notes of VMs (guests/note.py) in /etc/pve/homelab, read and written."""

from __future__ import annotations

import json
import re
from contextlib import suppress

from remote_scripts.guests.note import Note
from remote_scripts.shared import pmxcfs
from remote_scripts.shared.time_limit import within_limit
from remote_scripts.tools import disk
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.plain import FormError, of_plain, to_plain
from remote_scripts.tools.system import System

_FOLDER = "/etc/pve/homelab"
_NAME = re.compile(r"qemu-([1-9][0-9]*)")


def noted(system: System) -> list[int]:
    """The VMs of which something is noted."""
    matches = map(_NAME.fullmatch, pmxcfs.names(system, _FOLDER))
    return sorted(int(match[1]) for match in matches if match)


def of(system: System, vmid: int) -> Note:
    """What is noted of a VM; an empty note: nothing.

    :raises Failure: it can't be read: without it the VM's originals aren't known.
    """
    path = _path(vmid)
    content = pmxcfs.content_of(system, path)
    try:
        return of_plain(Note, json.loads(content)) if content else Note()
    except (ValueError, FormError) as error:
        raise Failure(
            f"what is noted of VM {vmid}, in {path}",
            f"it isn't what this program has written: {error}",
            "what the VM had before this program stands there alone",
            "restore the file from a backup of /etc/pve; or remove it, and the VM keeps what it has",
        ) from error


def write(system: System, vmid: int, note: Note) -> None:
    """Writes a note, on the disk when this returns; one that has nothing in it is removed.

    :raises Failure: it can't be written.
    """
    path = _path(vmid)
    try:
        if note:
            within_limit(lambda: system.files.need_folder(_FOLDER))
            pmxcfs.replace(system, path, json.dumps(to_plain(note), sort_keys=True, indent=1).encode())
        else:
            within_limit(lambda: _remove(system, path))
        system.files.flush_all()  # pmxcfs answers before its database is on the disk
    except OSError as error:
        raise Failure(
            f"what VM {vmid} has, and had before, noted in {path}",
            error.strerror or str(error),
            "without the note it couldn't be given back; without a quorum /etc/pve can only be read",
            "see `pvecm status` and `df /var/lib/pve-cluster`, then run `pulumi up` again",
        ) from error


def _remove(system: System, path: str) -> None:
    with suppress(FileNotFoundError):
        disk.remove(system.files.at(path))
    with suppress(OSError):  # others are noted
        disk.remove_folder(system.files.at(_FOLDER))


def _path(vmid: int) -> str:
    return f"{_FOLDER}/qemu-{vmid}"
