"""The one starter of guests that homelab has switched off (notes/owed.py): of an `up` after its restart of the host, of
the host's own timer, and of a card that is back from a VM.

A start is a task of Proxmox VE's own, which goes on where this process is cut off, and by which nothing is started
twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from operator import itemgetter

from remote_scripts.both.start_guests import Answer
from remote_scripts.cluster import ha
from remote_scripts.guests import power
from remote_scripts.guests.change import in_turn, resume
from remote_scripts.guests.container import Container
from remote_scripts.guests.guest import Guest
from remote_scripts.guests.power import SwitchedElsewhere
from remote_scripts.guests.start_conditions import Start, why_not
from remote_scripts.notes import owed
from remote_scripts.notes.owed import Debt
from remote_scripts.pve import guest_tasks
from remote_scripts.pve.api import NodeApi
from remote_scripts.pve.guest_kinds import CONTAINER
from remote_scripts.pve.properties import parse
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.kernel import boot_id
from remote_scripts.tools.system import System

_LAST_ORDER = 9999999999
_CLASSES: dict[str, type[Guest]] = {"qm": Guest, "pct": Container}
# One that doesn't start is tried again after so many seconds, then after twice as many, and so on, up to 16 times as
# many: each try is a task in Proxmox VE's log, which keeps some 950 of them. All tries take a day and a half.
_PAUSE_SECONDS, _DOUBLED, _TRIES = 60, 4, 150

# For so long a change of this host, or a handover, is waited for.
_LOCK_SECONDS = 60.0


class _LeftToOwner(SwitchedElsewhere):
    """Nothing is owed to the guest any more, and its owner has to know that."""


def start(
    system: System,
    debts: Iterable[Debt],
    *,
    is_ending: Callable[[], bool] = lambda: False,
    back: Collection[str] = (),
) -> Answer:
    """Starts those that are due, one after the other, in Proxmox VE's order.

    :param is_ending: whether this boot is about to end, or a run begins: then no further one is started.
    :param back: cards that are with the host again, whatever their records say.
    """
    answer, api, boot = Answer(), NodeApi(system), boot_id(system)
    due = sorted(((_startup(api, one), one) for one in debts if not one.is_yet_to_come(boot)), key=itemgetter(0))
    for (*_, pause), debt in due:
        if is_ending():
            break
        started = len(answer.started)
        _see_to(system, api, debt, back, answer)
        if debt is not due[-1][1] and len(answer.started) > started:
            time.sleep(pause)
    return answer


def _startup(api: NodeApi, debt: Debt) -> tuple[int, int, int]:
    """Its place: by `startup: order=`, without which it comes last (pve_parse_startup_order), then by id. And how many
    seconds later the next one comes.
    """
    values: dict[str, str] = {}
    with suppress(Failure):  # whether it can be read is asked once more
        values = parse("startup", api.get(f"/{debt.kind.name}/{debt.guest}/config").get("startup", ""))
    return int(values.get("order", _LAST_ORDER)), debt.guest, int(values.get("up", 0))


def _see_to(system: System, api: NodeApi, debt: Debt, back: Collection[str], answer: Answer) -> None:
    """Starts one that is due; what is said of it goes into the answer, and into the list why it waits."""
    waits, now = "", debt
    try:
        with _no_handover(system, debt, back), in_turn(_CLASSES[debt.program], system, api, debt.guest) as guest:
            try:
                waits = _find_obstacle(guest, debt, back)
                if not waits:
                    _resume(guest)
                    answer.started.append(debt.name)
            except SwitchedElsewhere as ended:
                line = f"{debt.name}: no start is owed to it any more: {ended.found}"
                if isinstance(ended, _LeftToOwner):
                    answer.off.append(line)
                else:
                    system.log.say(line)
                with suppress(Failure):  # a full disk: it is seen again at the next look
                    owed.drop(system, debt)
                    guest.write_note(guest.note)
            now = guest.debt or debt
    except Failure as failure:
        waits = failure.found.partition("\n")[0]
    if not waits:
        return
    now = replace(now, waits=system.log.clean(waits))
    if now != debt:
        with suppress(Failure):
            owed.update(system, now)
    if now.waits != debt.waits:
        answer.off.append(now.said)


def _no_handover(system: System, debt: Debt, back: Collection[str]) -> AbstractContextManager[None]:
    """Keeps a VM from taking a card between the look at a container and its start.

    :param back: this process hands them over, and has the host's lock.
    :raises Failure: it can't be kept from that for a while.
    """
    if back or debt.kind is not CONTAINER:
        return nullcontext()
    return system.work.alone("lock", _LOCK_SECONDS, f"{debt.name} started", shared=True)


def _resume(guest: Guest) -> None:
    """:raises _LeftToOwner: it was started, or switched by somebody else, in this very moment."""
    try:
        resume(guest)
    except SwitchedElsewhere as ended:
        raise _LeftToOwner(*ended.args) from ended


def _find_obstacle(guest: Guest, debt: Debt, back: Collection[str]) -> str:
    """Why it isn't to be started now; empty: it is.

    :raises SwitchedElsewhere: nothing is owed to it any more.
    """
    if guest.debt is None or not guest.is_here:
        raise power.switched(guest, "it isn't here any more, or another guest has its id")
    if ha.is_managed(guest.system, f"{guest.kind.ha}:{guest.vmid}"):
        raise power.switched(guest, "HA starts and stops it")
    if waits := _find_late_shutdown(guest, debt):
        return waits
    if guest.runs():
        raise power.switched(guest, "it runs")
    verdict = power.verdict(guest)
    if verdict == "over":
        raise power.switched(guest, "somebody else has switched it")
    if verdict == "unknown":
        return owed.UNKNOWN
    start = Start(guest.system, guest.kind, guest.vmid, debt.card, back)
    return why_not(start, "starter") or _find_pause(guest, debt)


def _find_late_shutdown(guest: Guest, debt: Debt) -> str:
    """That a guest that runs may still heed homelab's shutdown, which has failed: it has as long again for that.

    :raises _LeftToOwner: it had that time.
    """
    new = [task for task in guest.api.tasks() if task["upid"] not in debt.known]
    for task in new[:1]:
        is_late = task["upid"] in debt.ours and "endtime" in task and not guest_tasks.is_well(task["status"])
        if not is_late or guest.note.otherwise == "stop" or not guest.runs():
            break
        began = int(debt.ours[0].split(":")[4], 16)  # as a UPID has it
        asked = time.strftime(f"{owed.ASKED} %H:%M", time.localtime(began))
        if abs(time.time() - task["endtime"]) >= abs(task["endtime"] - began):  # its clock may have been set since
            raise _LeftToOwner(f"{guest.label} off", f"{asked}; if it goes off by itself now, start it", "", "")
        return f"{asked}, and still runs"
    return ""


def _find_pause(guest: Guest, debt: Debt) -> str:
    """Why it isn't tried again yet; empty: it is.

    :raises _LeftToOwner: it was tried often enough.
    """
    new = (task for task in guest.api.tasks() if task["upid"] not in debt.known)
    failed = [task["endtime"] for task in new if guest_tasks.is_failed_start(guest.kind, task)]
    if len(failed) >= _TRIES:
        found = f"its start has failed {_TRIES} times: {debt.waits}"
        raise _LeftToOwner(f"{guest.label} started", found, "", "")
    pause = _PAUSE_SECONDS << min(len(failed) - 1, _DOUBLED) if failed else 0
    return debt.waits if abs(time.time() - max(failed, default=0)) < pause else ""
