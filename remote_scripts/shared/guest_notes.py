"""The notes of guests (shared/guest_note.py) in /etc/pve/homelab, read and written."""

from __future__ import annotations

import errno
import json
import re
from contextlib import suppress
from typing import TypeVar

from remote_scripts.shared import pmxcfs
from remote_scripts.shared.container_note import ContainerNote
from remote_scripts.shared.guest_kinds import CONTAINER, Kind
from remote_scripts.shared.guest_note import Note
from remote_scripts.shared.time_limit import within_limit
from remote_scripts.tools import disk
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.plain import FormError, of_plain, to_plain
from remote_scripts.tools.system import System

_FOLDER = "/etc/pve/homelab"
N = TypeVar("N", bound=Note)


def noted(system: System, kind: Kind) -> list[int]:
    """The guests of a kind of which something is noted."""
    matches = (re.fullmatch(rf"{kind.name}-([1-9][0-9]*)", name) for name in pmxcfs.names(system, _FOLDER))
    return sorted(int(match[1]) for match in matches if match)


def of(system: System, kind: Kind, vmid: int, form: type[N]) -> N:
    """What is noted of a guest; an empty note: nothing.

    :param form: the class of its kind's notes.
    :raises Failure: it can't be read: without it the guest's originals aren't known.
    """
    path = _path(kind, vmid)
    content = pmxcfs.content_of(system, path)
    if content is None:
        pmxcfs.need(system, f"what is noted of {kind.label} {vmid}")
    try:
        return of_plain(form, json.loads(content)) if content else form()
    except (ValueError, FormError) as error:
        raise Failure(
            f"what is noted of {kind.label} {vmid}, in {path}",
            f"it isn't what this program has written: {error}",
            "what the guest had before this program stands there alone",
            "restore the file from a backup of /etc/pve; or remove it, and the guest keeps what it has",
        ) from error


def of_container(system: System, ctid: int) -> ContainerNote:
    """The same of a container."""
    return of(system, CONTAINER, ctid, ContainerNote)


def write(system: System, kind: Kind, vmid: int, note: Note) -> None:
    """Writes a note, on the disk when this returns; one that has nothing in it is removed.

    :raises Failure: it can't be written.
    """
    path = _path(kind, vmid)
    try:
        if not pmxcfs.this_node(system).name:  # else the note would lie below it, where nobody looks
            raise FileNotFoundError(errno.ENOENT, "/etc/pve isn't there")
        if note:
            _replace(system, path, json.dumps(to_plain(note), sort_keys=True, indent=1).encode())
        else:
            within_limit(lambda: _remove(system, path))
        system.files.flush_all()  # pmxcfs answers before its database is on the disk
    except OSError as error:
        raise Failure(
            f"what {kind.label} {vmid} has, and had before, noted in {path}",
            error.strerror or str(error),
            "without the note it couldn't be given back; without a quorum /etc/pve can only be read",
            "see `pvecm status` and `df /var/lib/pve-cluster`, then run `pulumi up` again",
        ) from error


def _replace(system: System, path: str, content: bytes) -> None:
    try:
        _put(system, path, content)
    except FileNotFoundError:  # another guest's turn may take the empty folder away before a note is in it
        _put(system, path, content)


def _put(system: System, path: str, content: bytes) -> None:
    within_limit(lambda: system.files.need_folder(_FOLDER))
    pmxcfs.replace(system, path, content)


def tidy(system: System, kind: Kind, vmid: int) -> None:
    """Takes away what a run that was killed has left beside a guest's note; its caller has the guest's turn."""
    path = _path(kind, vmid)
    with suppress(OSError):
        pmxcfs.remove_left(system, path)
    within_limit(lambda: _remove_folder(system))


def _remove(system: System, path: str) -> None:
    with suppress(FileNotFoundError):
        disk.remove(system.files.at(path))
    _remove_folder(system)


def _remove_folder(system: System) -> None:
    with suppress(OSError):  # others are noted
        disk.remove_folder(system.files.at(_FOLDER))


def _path(kind: Kind, vmid: int) -> str:
    return f"{_FOLDER}/{kind.name}-{vmid}"
