"""What is noted of a container, in /var/lib/homelab/containers/CTID (shared/container_notes.py says what), goes with it
to another node of the cluster: these notes tell which of the container's lines are this program's.

`read` gives it and changes nothing; `apply` writes what is given, and keeps the lines that are noted as ours here
already; `revert` forgets it, if it is still what was given.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field

from remote_scripts.shared import guest_tasks, kernel
from remote_scripts.shared.container_notes import NAME, RECORDS, Notes, ran_of, why_not_owed
from remote_scripts.tools import disk
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System, changes

# A configuration that could be put back is one of the node that the container has left; so is what is mounted there.
_STAYS = re.compile(r"before|after|.*_before|mounted")
_GONE = ".homelab-tmp"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`record`: for `apply` and `revert`, as `read` gives it."""

    ctid: int
    record: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """`record`: of `read`, the parts by their names, in base64; empty: nothing is noted."""

    record: dict[str, str]


def read(system: System, wanted: Wanted) -> Answer:
    """What is noted, as far as it goes along.

    :raises Failure: a part can't be read.
    """
    return Answer(_given(system, wanted.ctid))


@changes
def apply(system: System, wanted: Wanted) -> Answer:
    """Writes what is given; it is on the disk, and was read back, when this returns.

    :raises Failure: it isn't whole, or can't be written.
    """
    return _take(system, wanted.ctid, _decoded(wanted))


@changes
def revert(system: System, wanted: Wanted) -> Answer:
    """Forgets what is noted here.

    :raises Failure: it isn't what was given.
    """
    _clear_gone(system)
    notes = Notes(system, wanted.ctid)
    if _is_noted(notes.parts()) and _given(system, wanted.ctid) != wanted.record:
        raise Failure(
            f"what was noted of container {wanted.ctid} forgotten here, since it is noted on the node that the "
            "container is on now",
            "it has changed meanwhile",
            "what is noted here alone would be lost; it stays",
            "see who else works on this host, then run `pulumi up` again",
        )
    folder = system.files.at(notes.folder)
    if folder.is_dir():
        # At once: half of it would be taken along by the next run, in the place of the whole.
        disk.rename(folder, folder.with_name(f".{wanted.ctid}{_GONE}"))
        disk.flush(folder.parent)
        _clear_gone(system)
    return Answer({})


def _clear_gone(system: System) -> None:
    """Takes away what was forgotten, also by a run that was cut short."""
    files = system.files
    for folder in (f"{RECORDS}/{name}" for name in files.names(RECORDS) if name.endswith(_GONE)):
        files.remove(*(f"{folder}/{name}" for name in files.names(folder)))
        disk.remove_folder(files.at(folder))


def _is_noted(parts: dict[str, bytes]) -> bool:
    """A run that was cut short has noted lines as ours, and not yet what is wanted."""
    return "ours" in parts or "wanted" in parts


def _given(system: System, ctid: int) -> dict[str, str]:
    parts = Notes(system, ctid).parts()
    if not _is_noted(parts):
        return {}
    if "ran" in parts and why_not_owed(system, ctid, ran_of(parts["ran"])):
        del parts["ran"]
    going = {name: content for name, content in parts.items() if not _STAYS.fullmatch(name)}
    return {name: base64.b64encode(content).decode() for name, content in going.items()}


def _decoded(wanted: Wanted) -> dict[str, bytes]:
    try:
        parts = {name: base64.b64decode(text, validate=True) for name, text in wanted.record.items()}
    except binascii.Error:
        parts = {}
    if not _is_noted(parts) or not all(NAME.fullmatch(name) for name in parts):
        raise _not_taken(wanted.ctid, "what was given isn't whole")
    return parts


def _take(system: System, ctid: int, parts: dict[str, bytes]) -> Answer:
    files, notes = system.files, Notes(system, ctid)
    given = parts.get("ours", b"").splitlines(keepends=True)
    # Of a run that was cut short, or of when it was here before: these lines are ours as well.
    own = notes.content("ours").splitlines(keepends=True)
    parts["ours"] = b"".join(dict.fromkeys([*given, *own]))
    ran = _ran_here(system, ctid, parts.pop("ran", b""))
    if ran:
        parts["ran"] = ran
    # What is known as ours first, and what is of no use any more last.
    for name in sorted(parts, key=lambda name: (name != "ours", name)):
        notes.write(name, parts[name])
    notes.forget(*(name for name in files.names(notes.folder) if name not in parts))
    # The other node forgets its own next: what is here now is read back.
    if notes.parts() != parts:
        raise _not_taken(ctid, "what was read back isn't what was written")
    return Answer({})


def _ran_here(system: System, ctid: int, ran: bytes) -> bytes:
    """That it is to be started again was noted on the node that it has left, and counted there; here it is by this
    boot, unless it was started here since.
    """
    noted = ran_of(ran)
    if not noted.at or guest_tasks.was_started(system, "vz", ctid, int(noted.at) + 1):
        return b""
    return f"{noted.at} {kernel.boot_id(system)} yes {noted.known}\n".encode()


def _not_taken(ctid: int, found: str) -> Failure:
    return Failure(
        f"what is noted of container {ctid} written on this host",
        found,
        "these notes tell which of the container's lines are this program's",
        "see the log above, then run `pulumi up` again",
    )
