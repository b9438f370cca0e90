"""A guest's power within one transaction. No guest is started against whoever has switched it off: before each start
its tasks since homelab's own shutdown are looked at (notes/owed.py).
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Literal

from remote_scripts.both.terms import HANDOVER_SECONDS
from remote_scripts.guests.guest import Guest
from remote_scripts.guests.requests import TaskFailed, Tasks
from remote_scripts.notes import owed
from remote_scripts.notes.guest_note import identity
from remote_scripts.pve import guest_tasks
from remote_scripts.pve.api import Refused
from remote_scripts.pve.guest_kinds import CONTAINER
from remote_scripts.tools import passes
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.kernel import boot_id
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
# How long nobody need answer once a guest is off for homelab, in seconds: shorter than its client waits for all of it.
_PATIENCE_SECONDS = 1200.0
# How long a start may take.
_START_SECONDS = 300.0


class SwitchedElsewhere(Failure):
    """Somebody else has switched the guest off, or restarts it."""


def verdict(guest: Guest) -> owed.Verdict:
    """Whether a guest that is off is to be started, by what is owed to it; nothing is: `over`. What has switched it is
    known from then on, if it is due.

    :raises Failure: that can't be told.
    """
    if (debt := guest.debt) is None:
        return "over"
    since = debt.since(guest.api.tasks(), guest.begun)
    found = owed.verdict(debt, boot_id(guest.system), since, guest.api.restarts() if debt.why == "restart" else [])
    if found == "due" and not debt.is_seen:
        guest.debt = replace(debt, is_seen=True, known=(*debt.known, *(task["upid"] for task in since)))
    return found


def is_on_again(guest: Guest) -> bool:
    """Whether it was started since a run that was killed was about to shut it down: what it has then is in force."""
    if guest.debt is None:
        return False
    on = guest.kind.starts + guest.kind.reboots
    return any(task["type"] in on and guest_tasks.is_well(task["status"]) for task in _others(guest, guest.debt.known))


def shut_down(
    guest: Guest, seconds: int, otherwise: Literal["fail", "stop"], why: owed.Why | None = None, card: str = ""
) -> None:
    """Shuts it down, a VM by its agent or ACPI, unless somebody else has done that meanwhile.

    :param seconds: for which the guest may take its time; after that it is stopped, or this fails.
    :param why: it is to be started again, which is noted before; None: it isn't.
    :param card: as of Debt.
    :raises Failure: it still runs.
    """
    guest.settle()
    if not guest.runs():
        return
    if why:
        _owe(guest, why, card)
        guest.settle()
        if not guest.runs():  # it has gone off meanwhile
            guest.give_up()
            return
        guest.debt = replace(guest.debt, known=tuple(guest.settled)) if guest.debt else None

    def begun(upid: str) -> None:
        if why:
            guest.api.patience, guest.is_off = _PATIENCE_SECONDS, True
            _note_stop(guest, upid)

    guest.system.log.say(f"shutting {guest.label} down")
    wanted, ends = f"{guest.label} off within {seconds} s", time.monotonic() + seconds
    while True:
        left = max(1, round(ends - time.monotonic()))
        is_last = left <= _PRESS_SECONDS
        options = {"timeout": min(left, _PRESS_SECONDS), "forceStop": int(is_last and otherwise == "stop")}
        try:
            # A container's takes twice its time and 5 s where that isn't heeded (vm_stop of PVE::LXC).
            guest.api.task("shutdown", wanted, left + 2 * _PRESS_SECONDS, begun, **options)
            return
        except Refused as refused:
            guest.settle()
            if not guest.runs() or _WAS_OFF.search(refused.found):  # its owner may have started it again since
                return
            if is_last or not _DEAF.search(refused.found) or not isinstance(refused, TaskFailed):
                raise _still_on(guest, refused, seconds, is_owed=bool(why) and otherwise == "fail") from refused


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
    known = [task["upid"] for task in guest.api.tasks()]
    if verdict(guest) != "due" and not (by_settings and not (guest.debt and guest.debt.ours)):
        raise switched(guest, "somebody else has switched it meanwhile")
    seconds += HANDOVER_SECONDS if "hookscript" in guest.config else 0
    guest.system.log.say(f"starting {guest.label}")

    try:
        log = guest.api.task("start", wanted, seconds, guest.begun.append)
    except Refused:
        if not guest.runs():  # else another client was faster
            raise
    if not by_settings and _is_stopped_since(guest, known):
        guest.settle()
        if guest.runs() and _is_stopped_since(guest, known):  # else his stop has ended it, or he has started it again
            shut_down(guest, guest.note.shutdown, guest.note.otherwise)
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
        if others := _others(guest, known):
            raise switched(guest, f"{others[0]['user']} has switched it off, or restarts it")
        if guest.kind is CONTAINER and not by_settings:
            raise switched(guest, "it was started, and went off by itself, as when it is shut down from inside")
        raise _gone_off(guest, wanted, "its task succeeded, and it went off again")
    guest.give_up()
    return log


def _others(guest: Guest, known: Collection[str]) -> Tasks:
    """The tasks of somebody else's since some are known, the latest first: all are of one boot."""
    return [task for task in guest.api.tasks() if task["upid"] not in known and task["upid"] not in guest.begun]


def _is_stopped_since(guest: Guest, known: Collection[str]) -> bool:
    """Whether the newest task of somebody else is a stop: one that began right before homelab's start has found the
    guest off, and ended well. A start that has failed counts, too: the guest was on already.
    """
    newest = next(iter(_others(guest, known)), None)
    return bool(newest and newest["type"] in guest.kind.stops and guest_tasks.is_well(newest.get("status", "")))


def _stop(guest: Guest) -> None:
    """Ends QEMU of a VM that it has halted."""
    with suppress(Refused):
        wanted = f"{guest.label} stopped, which QEMU has halted"
        guest.api.task("stop", wanted, _PRESS_SECONDS, partial(_note_stop, guest))


def _owe(guest: Guest, why: owed.Why, card: str) -> None:
    """Notes that it is to run again. What had ended by a look that found it running is known: a stop that has begun
    since is against a start.

    :raises Failure: it can't be noted.
    """
    guest.debt = owed.Debt(
        program=guest.kind.program,
        guest=guest.vmid,
        name=f"{guest.label} ({guest.config.get('name') or guest.config.get('hostname') or 'no name'})",
        identity=identity(guest.config),
        why=why,
        boot=boot_id(guest.system),
        known=tuple(guest.settled),
        card=card,
    )
    owed.put(guest.system, guest.debt)


def _note_stop(guest: Guest, upid: str) -> None:
    """Counts a task that ends the guest as homelab's."""
    if guest.debt is None:
        return
    guest.debt = replace(guest.debt, ours=(*guest.debt.ours, upid))
    with suppress(Failure):  # it has begun: where it isn't noted, this run alone knows
        owed.update(guest.system, guest.debt)


def _gone_off(guest: Guest, wanted: str, found: str) -> Failure:
    return Failure(
        wanted,
        found,
        "QEMU ended, or the guest shut itself down",
        f"look at `journalctl -u {guest.vmid}.scope` on the host and the VM's console, then run `pulumi up` again",
    )


def _still_on(guest: Guest, refused: Refused, seconds: int, *, is_owed: bool) -> Failure:
    """:param is_owed: it may still heed that, and is started again then (starts.py)."""
    next = (
        f"give it longer (shutdown.timeout, now {seconds}), or let it be switched off then (shutdown.otherwise: stop)"
    )
    if "is locked" in refused.found:
        next = f"once nothing works on it: `{guest.kind.program} unlock {guest.vmid}`; then run `pulumi up` again"
    elif is_owed:
        next += f"; if it goes off within {seconds} s, this host starts it again; start it if it goes off later"
    return refused.but(
        found=f"it is still on: {refused.found}",
        why="the change needs a guest that is off",
        next=next,
    )


def switched(guest: Guest, found: str) -> SwitchedElsewhere:
    """Why this run doesn't start a guest."""
    why = "whoever has switched a guest off wants it off: it keeps the change, and this run doesn't start it"
    return SwitchedElsewhere(f"{guest.label} started", found, why, "start it when it is off and is to run")
