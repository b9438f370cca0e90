"""The guests that homelab has switched off run again (notes/owed.py): by an `up` once the boot is confirmed, or by the
host's own timer, homelab-owed.{service,timer}, which goes with the last of them.

A guest that somebody else has switched off stays off. This layer leaves alone what HA or a run that hands over a card
starts, and what `up` itself starts or wants off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from remote_scripts.boot import trial
from remote_scripts.both.start_guests import Answer, Wanted
from remote_scripts.cluster.turn import is_restart_ordered
from remote_scripts.guests import starts
from remote_scripts.notes import owed
from remote_scripts.tools.restart import is_going_down
from remote_scripts.tools.system import System

#: For so long Proxmox VE, which starts its own guests first, is waited for, in seconds.
FIRST_SECONDS = 300
# A run that has confirmed a boot takes the host within this time (homelab/host/work.py).
_GRACE_SECONDS = 60.0
_IS_UP = frozenset(("running", "degraded", "maintenance"))


def apply(system: System, wanted: Wanted) -> Answer:
    """Starts them, one after the other.

    :raises Failure: what is noted can't be read.
    """
    for _ in system.work.tries(FIRST_SECONDS, "waiting until Proxmox VE has started its guests"):
        if _is_boot_decided(system):
            return _start(system, wanted, partial(_is_ending, system))
    found = "guests that ran before the restart aren't started yet: Proxmox VE hasn't started its own"
    return Answer(off=[f"{found}; this host goes on trying (homelab-owed.timer)"])


def program(system: System, _arguments: Sequence[str] = ()) -> None:
    """What the host's own timer starts, every two minutes, until nothing is owed.

    :raises Failure: what is noted can't be read.
    """
    if not _may_start(system):
        return
    if owed.noted(system):
        time.sleep(_GRACE_SECONDS)
        if not _may_start(system):
            return
        answer = _start(system, Wanted(), lambda: not _may_start(system))
        started = f"the host itself has started what homelab had switched off: {', '.join(answer.started)}"
        known = owed.news(system)
        said = [line for line in answer.off if line not in known]  # else the list couldn't be written
        for line in [*([started] if answer.started else []), *said]:
            system.log.say(line)
            system.work.write(owed.NEWS.rpartition("/")[2], f"{line}\n", at_end=True)
    if not owed.noted(system):
        system.changing(lambda: owed.drop(system))  # what a cut has left of the rest, and folders that are empty by now


def _start(system: System, wanted: Wanted, is_ending: Callable[[], bool]) -> Answer:
    debts = owed.noted(system)
    meant = (debt for debt in debts if debt.guest not in (*wanted.unwanted, *wanted.later))
    answer = starts.start(system, meant, is_ending=is_ending)
    unwanted = [debt for debt in debts if debt.guest in wanted.unwanted]
    owed.drop(system, *unwanted)  # what a full disk refuses has kept nobody off
    for debt in unwanted:
        system.log.say(f"{debt.name}: no start is owed to it any more: the settings want it off")
    return answer


def _is_boot_decided(system: System) -> bool:
    """Whether this boot is to stay, and Proxmox VE has started what it starts.

    :raises Failure: what is noted of it can't be read.
    """
    if _is_ending(system) or trial.state(system) == "running":
        return False
    state = system.run.ask("systemctl", "is-active", "pve-guests.service").text
    # Where it has failed, or is disabled, it starts nothing any more in this boot.
    has_come_up = state == "inactive" and system.run.ask("systemctl", "is-system-running").text in _IS_UP
    return state in ("active", "failed") or has_come_up


def _is_ending(system: System) -> bool:
    """Whether this boot is about to end: who is started now would be shut down at once, and be owed nothing after."""
    return trial.is_ending(system) or is_restart_ordered(system) or is_going_down(system)


def _may_start(system: System) -> bool:
    return _is_boot_decided(system) and not system.work.is_held()
