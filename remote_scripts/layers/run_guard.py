"""Lets one run (`pulumi up` or `pulumi destroy`) at a time be at work on this host: held as long as the client's
connection lasts, whatever ends it.

Files in /run/homelab, which is empty after a boot: `up` names the run, which holds its lock (flock(2)); `notes` is what
the run's steps note for its end (tools/log.py); steps at work hold the locks of `lock` and, of a container, of
`inside-ID`. A step that waits ends as soon as `up` no longer names the run that started it (tools/state.py).
"""

from __future__ import annotations

import time

from remote_scripts.both.run_guard import Wanted
from remote_scripts.notes import handover
from remote_scripts.tools import passes
from remote_scripts.tools.client import Client
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.log import NOTES
from remote_scripts.tools.state import STEP, UP
from remote_scripts.tools.system import System
from remote_scripts.tools.text import as_text

_NOTES_SECONDS = 1.0


def hold(system: System, wanted: Wanted, client: Client) -> None:
    """Answers as soon as it holds this host, and ends when the client has gone. After the answer come lines for people,
    which steps have noted. The client's line `cancelled` says that the run begins nothing more.

    :raises Failure: another run is at work, or a step of an earlier one, or a handover.
    """
    work = system.work
    work.need_folder()
    if work.is_held():  # where that run restarts this host, nothing else is heard
        system.log.say(f"another run is at work: {system.files.line(UP)}")
    with work.holding("up", wanted.patience) as is_mine:
        if not is_mine:
            raise Failure(
                "to be the only run at work on this host",
                f"another one is: {system.files.line(UP)}",
                "two at once would undo each other's changes, and could reboot the host twice",
                "this run changes nothing more: wait until the other one has ended, then run the same again",
            )
        # Before it names itself: a VM that an earlier run starts still gets its shared card.
        ends = time.monotonic() + wanted.ending
        _await_steps(system, wanted, ends, "guest-*")
        # A run whose connection was cut comes back, and VMs that it has started itself have their passes by its name.
        # On a full disk the host is held all the same.
        _note(system, "up", f"{wanted.who}\n", "/run is full: who is at work can't be noted")
        try:
            _hold(system, wanted, client, ends)
        finally:
            system.files.remove(f"/{NOTES}")
            _note(system, "up", "", f"{UP} can't be emptied")


def _hold(system: System, wanted: Wanted, client: Client, ends: float) -> None:
    work = system.work
    # From here on none begins; one that has begun comes to its end, so that it is known where its card is.
    with work.holding(handover.HANDING, wanted.handing) as is_handed:
        pass
    if is_handed:
        _await_steps(system, wanted, ends, "lock", "inside-*")
    # After that: it may have given some meanwhile, by another connection.
    passed = passes.of(system, wanted.who)
    if not is_handed and not any(record.vm in passed for record in handover.records_away(system).values()):
        raise Failure(
            "no card on its way to a VM that starts",
            f"a handover is at work: {_last_line(system, '/var/lib/homelab/handover/log')}",
            "NVIDIA's driver and containers can't be changed meanwhile; nothing was changed",
            "wait until it has ended (/var/lib/homelab/handover/log tells), then run the same again",
        )
    handover.need_rest(system, passed)
    _note(system, "notes", "", "/run is full: what steps note is shown only while they run")
    client.tell('{"held":"yes"}')
    sent = 0
    for word in client.lines(wanted.silence, _NOTES_SECONDS):
        if word == "cancelled":
            _note(system, "up", f"{wanted.who}, and was cancelled\n", "/run is full: steps go on to their end")
        noted = system.files.read(f"/{NOTES}") or b""
        lines = noted[sent : noted.rfind(b"\n") + 1]
        sent += len(lines)
        for line in lines.splitlines():
            client.tell(as_text(line))


def _await_steps(system: System, wanted: Wanted, ends: float, *patterns: str) -> None:
    """What an earlier run has begun comes to its end, so that no two are at work side by side. Not what this run has
    begun itself: before it held the host, when there was none to be noted, or before its connection was cut.

    :param ends: when that is waited for no longer.
    :param patterns: names of locks in /run/homelab. A run that comes back waits for no guest of its own.
    :raises Failure: a step of another run doesn't end.
    """
    for name in sorted(path.name for pattern in patterns for path in system.work.folder.glob(pattern)):
        path = f"/run/homelab/{name}"
        is_guest = name.startswith("guest-")
        if is_guest and _last_line(system, path) in (STEP, wanted.who):
            continue
        with system.work.holding(name, ends - time.monotonic()) as is_mine:
            if is_mine:
                _note(system, name, "", f"{path} can't be emptied")
            elif (whose := _last_line(system, path)) != wanted.who and (whose or is_guest):
                raise Failure(
                    "to be the only run at work on this host",
                    f"a step of an earlier run is still at work, of {whose} ({name}: "
                    f"{_last_line(system, '/run/homelab/steps')})",
                    "it ends without your help; two runs at once would undo each other's changes",
                    "wait until it has ended (/run/homelab/steps tells), then run the same again",
                )


def _last_line(system: System, path: str) -> str:
    lines = system.files.text(path).splitlines()
    return lines[-1] if lines else ""


def _note(system: System, name: str, text: str, otherwise: str) -> None:
    try:
        system.work.write(name, text)
    except OSError as error:
        system.log.say(f"{otherwise}: {error.strerror}")
