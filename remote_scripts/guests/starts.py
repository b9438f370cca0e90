"""The one starter of guests that homelab has switched off (notes/owed.py): of an `up` after its restart of the host, of
the host's own timer, and of a card that is back from a VM.

A start is a task of Proxmox VE's own, which goes on where this process is cut off, and by which nothing is started
twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import replace
from operator import itemgetter

from remote_scripts.both.start_guests import Answer
from remote_scripts.cluster import ha
from remote_scripts.guests import power
from remote_scripts.guests.change import in_turn, resume
from remote_scripts.guests.container import Container
from remote_scripts.guests.guest import Guest
from remote_scripts.guests.power import SwitchedElsewhere
from remote_scripts.notes import handover, owed
from remote_scripts.notes.owed import Debt
from remote_scripts.pve import guest_tasks, hookscripts
from remote_scripts.pve.api import NodeApi
from remote_scripts.pve.properties import parse
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.kernel import boot_id
from remote_scripts.tools.system import System

_LAST_ORDER = 9999999999
_CLASSES: dict[str, type[Guest]] = {"qm": Guest, "pct": Container}
# One that doesn't start is tried again after so many seconds, then after twice as many, and so on, up to 16 times as
# many: each try is a task in Proxmox VE's log.
_PAUSE_SECONDS, _DOUBLED = 60, 4


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
        with in_turn(_CLASSES[debt.program], system, api, debt.guest) as guest:
            verdict = _judged(guest)
            if verdict == "over":
                owed.drop(system, debt)
                guest.write_note(guest.note)
            elif not (waits := owed.UNKNOWN if verdict == "unknown" else _obstacle(guest, debt, back)):
                resume(guest)
                answer.started.append(debt.name)
            now = guest.debt or debt
    except SwitchedElsewhere:
        owed.drop(system, debt)
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


def _judged(guest: Guest) -> owed.Verdict:
    """Whether it is to be started. Nothing is owed to one that runs, is another one or not here, or is under HA."""
    if guest.debt is None or not guest.is_here or guest.runs():
        return "over"
    return "over" if ha.is_managed(guest.system, f"{guest.kind.ha}:{guest.vmid}") else power.verdict(guest)


def _obstacle(guest: Guest, debt: Debt, back: Collection[str]) -> str:
    """Why it isn't to be started now; empty: it is."""
    system = guest.system
    if debt.card and debt.card not in back and handover.is_away(system, debt.card):
        return f"gpus.{debt.card} isn't back from a VM"
    if hookscripts.is_homelabs(guest.config.get("hookscript", "")) and system.work.is_held():
        return "a run of homelab is at work, which may need its card"
    if lock := guest.config.get("lock"):
        return f"it is locked, {lock} (once nothing works on it: `{debt.program} unlock {debt.guest}`)"
    new = (task for task in guest.api.tasks() if task["upid"] not in debt.known)
    failed = [task["endtime"] for task in new if guest_tasks.is_failed_start(guest.kind, task)]
    pause = _PAUSE_SECONDS << min(len(failed) - 1, _DOUBLED) if failed else 0
    return debt.waits if abs(time.time() - max(failed, default=0)) < pause else ""
