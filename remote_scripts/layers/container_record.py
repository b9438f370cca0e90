"""What is noted of a container, in /var/lib/homelab/containers/CTID (shared/container_notes.py says what), goes with it
to another node of the cluster: these notes tell which of the container's lines are this program's.

`read` gives it and changes nothing; `apply` writes what is given, and keeps the lines that are noted as ours here
already; `revert` forgets it, if it is still what was given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from remote_scripts.shared import guest_tasks, kernel
from remote_scripts.shared.container_notes import Noted, Notes, Ran, why_not_owed
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System, changes


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`record`: for `apply` and `revert`, as `read` gives it."""

    ctid: int
    record: Noted | None = None


@dataclass(frozen=True)
class Answer:
    """`record`: of `read`; None: nothing is noted."""

    record: Noted | None


def read(system: System, wanted: Wanted) -> Answer:
    """What is noted, as far as it goes along.

    :raises Failure: it can't be read.
    """
    return Answer(_going(system, wanted.ctid))


@changes
def apply(system: System, wanted: Wanted) -> Answer:
    """Writes what is given; it is on the disk, and was read back, when this returns.

    :raises Failure: nothing is given, or it can't be written.
    """
    notes, given = Notes(system, wanted.ctid), wanted.record
    if given is None or not _is_noted(given):
        raise _not_taken(wanted.ctid, "what was given isn't whole")
    # Of a run that was cut short, or of when it was here before: these lines are ours as well.
    lines = tuple(dict.fromkeys([*given.given.lines, *notes.read().given.lines]))
    ran = _ran_here(system, wanted.ctid, given.ran) if given.ran else None
    noted = replace(given, given=replace(given.given, lines=lines), ran=ran)
    notes.write(noted)
    # The other node forgets its own next: what is here now is read back.
    if notes.read() != noted:
        raise _not_taken(wanted.ctid, "what was read back isn't what was written")
    return Answer(None)


@changes
def revert(system: System, wanted: Wanted) -> Answer:
    """Forgets what is noted here.

    :raises Failure: it isn't what was given.
    """
    notes = Notes(system, wanted.ctid)
    if _is_noted(notes.read()) and _going(system, wanted.ctid) != wanted.record:
        raise Failure(
            f"what was noted of container {wanted.ctid} forgotten here, since it is noted on the node that the "
            "container is on now",
            "it has changed meanwhile",
            "what is noted here alone would be lost; it stays",
            "see who else works on this host, then run `pulumi up` again",
        )
    notes.write(Noted())
    return Answer(None)


def _is_noted(noted: Noted) -> bool:
    """A run that was cut short has noted lines as ours, and not yet what is wanted."""
    return bool(noted.given.lines or noted.given.cards)


def _going(system: System, ctid: int) -> Noted | None:
    """A configuration that could be put back is one of the node that the container has left; so is what is mounted
    there.
    """
    noted = Notes(system, ctid).read()
    if not _is_noted(noted):
        return None
    ran = noted.ran and (None if why_not_owed(system, ctid, noted.ran) else noted.ran)
    return replace(noted, ran=ran, before=None, after="", mounted=False)


def _ran_here(system: System, ctid: int, ran: Ran) -> Ran | None:
    """That it is to be started again was noted on the node that it has left, and counted there; here it is by this
    boot, unless it was started here since.
    """
    if guest_tasks.was_started(system, "vz", ctid, ran.at + 1):
        return None
    return Ran(ran.at, kernel.boot_id(system), True, ran.known)


def _not_taken(ctid: int, found: str) -> Failure:
    return Failure(
        f"what is noted of container {ctid} written on this host",
        found,
        "these notes tell which of the container's lines are this program's",
        "see the log above, then run `pulumi up` again",
    )
