"""The notes of guests (notes/guest_note.py) in /etc/pve/homelab, read and written."""

from __future__ import annotations

import json
import re
from typing import TypeVar

from remote_scripts.notes.container_note import ContainerNote
from remote_scripts.notes.guest_note import Note
from remote_scripts.pve import pmxcfs
from remote_scripts.pve.guest_kinds import CONTAINER, Kind
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.plain import FormError, of_plain, to_plain
from remote_scripts.tools.system import System

N = TypeVar("N", bound=Note)


def noted(system: System, kind: Kind) -> list[int]:
    """The guests of a kind of which something is noted."""
    matches = (re.fullmatch(rf"{kind.name}-([1-9][0-9]*)", name) for name in system.files.need_names(pmxcfs.HOMELAB))
    return sorted(int(match[1]) for match in matches if match)


def of(system: System, kind: Kind, vmid: int, form: type[N]) -> N:
    """What is noted of a guest; an empty note: nothing.

    :param form: the class of its kind's notes.
    :raises Failure: it can't be read: without it the guest's originals aren't known.
    """
    path = _path(kind, vmid)
    content = system.files.need(path)
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
    content = json.dumps(to_plain(note), sort_keys=True, indent=1).encode() if note else b""
    try:
        pmxcfs.note(system, path, content)
    except OSError as error:
        raise Failure(
            f"what {kind.label} {vmid} has, and had before, noted in {path}",
            error.strerror or str(error),
            "without the note it couldn't be given back; without a quorum /etc/pve can only be read",
            "see `pvecm status` and `df /var/lib/pve-cluster`, then run `pulumi up` again",
        ) from error


def tidy(system: System, kind: Kind, vmid: int) -> None:
    """Takes away what a run that was killed has left beside a guest's note; its caller has the guest's turn."""
    pmxcfs.tidy(system, _path(kind, vmid))


def _path(kind: Kind, vmid: int) -> str:
    return f"{pmxcfs.HOMELAB}/{kind.name}-{vmid}"
