"""A guest's power within one transaction. No guest is started against whoever has switched it off: before each start
the tasks since homelab's own shutdown are looked at.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import takewhile
from typing import Any, Literal

from remote_scripts.both.terms import HANDOVER_SECONDS
from remote_scripts.guests.guest import Guest
from remote_scripts.guests.requests import TaskFailed
from remote_scripts.notes import guests_to_start
from remote_scripts.pve import guest_tasks
from remote_scripts.pve.api import Refused
from remote_scripts.tools import passes
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.state import UP

# QEMU's state of a VM that it has halted, as when the kernel reports an error of a card (hw/vfio/pci.c).
_HALTED = "internal-error"
#: How long a VM with a card has to run until its start counts, in seconds: QEMU may end once the guest's firmware or
#: driver reaches for the card.
STEADY_SECONDS = 20.0
# Between two presses of the power button: a guest that is still booting ignores it.
_PRESS_SECONDS = 60
# The end of a shutdown's log if the guest didn't follow (QEMU's text, lxc's), or if the task itself was ended: by a
# restart of pvedaemon, or for a Stop, which is then among the tasks before the start.
_DEAF = re.compile(r"powerdown failed|lxc-stop .*failed|received interrupt")
_WAS_OFF = re.compile(r"CT \d+ not running")
# So soon after it is noted that a guest is about to be shut down, its shutdown begins, in seconds.
_LOST_SECONDS = 1
# How long nobody need answer once a guest is off for homelab, in seconds: shorter than its client waits for all of it.
_PATIENCE_SECONDS = 1200.0
# How long a start may take.
_START_SECONDS = 300.0


class SwitchedElsewhere(Failure):
    """Somebody else has switched the guest off, or restarts it."""


def is_to_run_again(guest: Guest) -> bool:
    """Whether a guest that is off is so by this program alone: by a shutdown of a run that was killed, or by a restart
    of the host (notes/guests_to_start.py).

    :raises Failure: that can't be told.
    """
    if (since := _since(guest, guest.note.shut_down_after)) and not _others(guest, since):
        return True
    ran = guests_to_start.of(guest.system, guest.kind, guest.vmid)
    if ran is None:
        return False
    since, down = _since(guest, ran.last), guest.api.went_down(ran.at)
    # The host shuts each down once: a second one is its owner's, who may do so while it is off.
    return len(since) < 2 and all(_is_roots_shutdown(guest, task) and task["starttime"] >= down for task in since)


def is_on_again(guest: Guest) -> bool:
    """Whether it was started since a run that was killed was about to shut it down: what it has then is in force."""
    return any(task["type"] in guest.kind.starts for task in _since(guest, guest.note.shut_down_after)[:1])


def _since(guest: Guest, last: str | None) -> list[dict[str, Any]]:
    """What has switched it on or off since a task, the latest first; None: nothing has."""
    tasks = [] if last is None else takewhile(lambda task: task["upid"] != last, guest.api.tasks())
    return [task for task in tasks if not _has_failed(guest, task)]


def _others(guest: Guest, since: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Which of these tasks aren't homelab's, and count: a start or restart of somebody else's, after which homelab has
    shut the guest down, doesn't. If a run was killed before it could note its shutdown, root's first shutdown counts as
    homelab's if it began right then: nothing else tells it from its owner's.
    """
    own, at = {*guest.note.stops, *guest.begun}, guest.note.shut_down_at
    others = [task for task in since if task["upid"] not in own]
    is_noted = any(task["upid"] in own and task["starttime"] >= at for task in since)
    if others and not is_noted and _is_roots_shutdown(guest, others[-1]):
        own |= {others[-1]["upid"]} if 0 <= others[-1]["starttime"] - at <= _LOST_SECONDS else set()
        others = [task for task in others if task["upid"] not in own]
    is_on_again = others and others[0]["type"] in guest.kind.starts and since[0]["upid"] in own
    return [] if is_on_again else others


def _has_failed(guest: Guest, task: Mapping[str, Any]) -> bool:
    """Whether it is a start that ended with an error."""
    return task["type"] in guest.kind.starts and "endtime" in task and not guest_tasks.is_well(task["status"])


def _is_roots_shutdown(guest: Guest, task: Mapping[str, Any]) -> bool:
    return (task["type"], task["user"]) == (guest.kind.stops[0], "root@pam")


def shut_down(guest: Guest, seconds: int, otherwise: Literal["fail", "stop"], *, to_start: bool) -> None:
    """Shuts it down, a VM by its agent or ACPI, unless somebody else has done that meanwhile.

    :param seconds: for which the guest may take its time; after that it is stopped, or this fails.
    :param to_start: it is to be started next: noted before, for the run after one that is killed.
    :raises Failure: it still runs.
    """
    guest.settle()
    if not guest.runs():
        return
    if to_start:
        _note_that_it_ran(guest)

    def begun(upid: str) -> None:
        if to_start:
            guest.api.patience, guest.is_off = _PATIENCE_SECONDS, True
            _note_stop(guest, upid)

    guest.system.log.say(f"shutting {guest.label} down")
    wanted, ends = f"{guest.label} off within {seconds} s", time.monotonic() + seconds
    while True:
        left = max(1, round(ends - time.monotonic()))
        is_last = left <= _PRESS_SECONDS
        options = {"timeout": min(left, _PRESS_SECONDS), "forceStop": int(is_last and otherwise == "stop")}
        try:
            guest.api.task("shutdown", wanted, left + _PRESS_SECONDS, begun, **options)
            return
        except Refused as refused:
            guest.settle()
            if not guest.runs() or _WAS_OFF.search(refused.found):  # its owner may have started it again since
                return
            if is_last or not _DEAF.search(refused.found) or not isinstance(refused, TaskFailed):
                raise _still_on(refused, seconds) from refused
            if to_start:
                guest.write_note(replace(guest.note, shut_down_at=int(time.time())))


def let_start(guest: Guest) -> None:
    """Lets it take its shared cards: while a run holds this host, no other VM may.

    :raises OSError: that can't be noted.
    """
    if "hookscript" in guest.config:
        passes.note(guest.system, str(guest.vmid), guest.system.files.line(UP))


def start(guest: Guest, *, by_settings: bool = False) -> list[str]:
    """Starts it, and returns its task's log.

    :param by_settings: the settings say that it runs.
    :raises SwitchedElsewhere: somebody else has switched it.
    :raises Failure: it doesn't start, or goes off again.
    """
    wanted, seconds, log = f"{guest.label} started", _START_SECONDS, list[str]()
    last = next((task["upid"] for task in guest.api.tasks()), "")
    if not is_to_run_again(guest) and not (by_settings and guest.note.shut_down_after is None):
        raise switched(guest, "somebody else has switched it meanwhile")
    seconds += HANDOVER_SECONDS if "hookscript" in guest.config else 0
    guest.system.log.say(f"starting {guest.label}")

    def begun(upid: str) -> None:
        guest.begun.append(upid)

    try:
        log = guest.api.task("start", wanted, seconds, begun)
    except Refused:
        if not guest.runs():  # else another client was faster
            raise
    if not by_settings and _is_stopped_since(guest, last):
        guest.settle()
        if guest.runs() and _is_stopped_since(guest, last):  # else his stop has ended it, or he has started it again
            shut_down(guest, guest.note.shutdown, guest.note.otherwise, to_start=False)
            raise switched(guest, "somebody else has switched it in the moment of its start")
    has_card = any(key.startswith("hostpci") for key in guest.config)
    for _ in guest.system.work.tries(STEADY_SECONDS if has_card else 0, f"waiting for: {wanted}, and steady"):
        status = guest.status()
        if status.get("qmpstatus") == _HALTED:
            _stop(guest)
            raise _gone_off(guest, wanted, "QEMU has halted it: the host's kernel has reported an error of a card")
        if status["status"] == "running":
            guest.is_off = False
            if int(status.get("uptime", 0)) >= STEADY_SECONDS:  # it was started a while before the task was seen to end
                break
            continue
        if (now := guest.api.tasks()[0])["upid"] not in guest.begun:
            raise switched(guest, f"{now['user']} has switched it off, or restarts it")
        raise _gone_off(guest, wanted, "its task succeeded, and it went off again")
    return log


def _is_stopped_since(guest: Guest, last: str) -> bool:
    """Whether the newest task of somebody else since a task is a stop: one that began right before homelab's start has
    found the guest off, and ended well. A start that has failed counts, too: the guest was on already.
    """
    since = takewhile(lambda task: task["upid"] != last, guest.api.tasks())
    newest = next((task for task in since if task["upid"] not in guest.begun), None)
    return bool(newest and newest["type"] in guest.kind.stops and guest_tasks.is_well(newest.get("status", "")))


def _stop(guest: Guest) -> None:
    """Ends QEMU of a VM that it has halted."""
    with suppress(Refused):
        wanted = f"{guest.label} stopped, which QEMU has halted"
        guest.api.task("stop", wanted, _PRESS_SECONDS, partial(_note_stop, guest))


def _note_that_it_ran(guest: Guest) -> None:
    """What a run that was killed has noted stays, while nobody else has switched it since; what it hadn't come to note
    is noted now.

    :raises Failure: it can't be noted.
    """
    since = _since(guest, guest.note.shut_down_after)
    note = replace(guest.note, shut_down_at=int(time.time()))
    if note.shut_down_after is not None and not _others(guest, since):
        guest.write_note(replace(note, stops=tuple(task["upid"] for task in since)))
    else:
        # Not the newest by now: a stop of its owner's that has begun since is against a start.
        guest.write_note(replace(note, shut_down_after=guest.settled_after, stops=()))


def _note_stop(guest: Guest, upid: str) -> None:
    """Counts a task that ends QEMU as homelab's."""
    guest.note = replace(guest.note, stops=(*guest.note.stops, upid))
    with suppress(Failure):  # it has begun: where it isn't noted, the first of root's shutdowns counts
        guest.write_note(guest.note)


def _gone_off(guest: Guest, wanted: str, found: str) -> Failure:
    return Failure(
        wanted,
        found,
        "QEMU ended, or the guest shut itself down",
        f"look at `journalctl -u {guest.vmid}.scope` on the host and the VM's console, then run `pulumi up` again",
    )


def _still_on(refused: Refused, seconds: int) -> Failure:
    return refused.but(
        found=f"it is still on: {refused.found}",
        why="the change needs a guest that is off",
        next=f"shut it down from inside, give it longer (shutdown.timeout, now {seconds}), or let it be switched off "
        "then (shutdown.otherwise: stop); start it if it goes off later: no run does",
    )


def switched(guest: Guest, found: str) -> SwitchedElsewhere:
    """Why this run doesn't start a guest."""
    why = "whoever has switched a guest off wants it off: it keeps the change, and this run doesn't start it"
    return SwitchedElsewhere(f"{guest.label} started", found, why, "start it when it is off and is to run")
