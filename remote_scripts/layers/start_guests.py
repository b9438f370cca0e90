"""The guests that ran before a restart of this program's run again: by an `up` once the boot is confirmed, or by the
host's own timer. /var/lib/homelab/ran and homelab-ran.{service,timer} go.

A start is a task of Proxmox VE's own, which goes on where this process is cut off, and by which nothing is started
twice. A guest that somebody else has switched off stays off (guests/power.py). This layer leaves alone what HA or a run
that hands over a card starts, and what `up` itself starts or wants off.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from remote_scripts.boot import trial
from remote_scripts.both.start_guests import Answer, Wanted
from remote_scripts.cluster import ha
from remote_scripts.cluster.turn import is_restart_ordered
from remote_scripts.guests import power
from remote_scripts.guests.container import Container
from remote_scripts.guests.guest import Guest
from remote_scripts.guests.power import SwitchedElsewhere
from remote_scripts.notes import guests_to_start
from remote_scripts.notes.guests_to_start import Ran
from remote_scripts.pve import hookscripts
from remote_scripts.pve.api import NodeApi
from remote_scripts.pve.guest_kinds import KINDS
from remote_scripts.pve.properties import parse
from remote_scripts.tools import disk
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.kernel import need_boot_id
from remote_scripts.tools.restart import is_going_down
from remote_scripts.tools.system import System

#: For so long Proxmox VE, which starts its own guests first, is waited for, in seconds.
FIRST_SECONDS = 300
_OTHER_SECONDS = 5.0
# A run that has confirmed a boot takes the host within this time (homelab/host/work.py).
_GRACE_SECONDS = 60.0
_IS_UP = frozenset(("running", "degraded", "maintenance"))
_LAST_ORDER = 9999999999
_CLASSES: dict[str, type[Guest]] = {"qm": Guest, "pct": Container}


def apply(system: System, wanted: Wanted) -> Answer:
    """Starts them, one after the other.

    :raises Failure: what is noted can't be read.
    """
    for _ in system.work.tries(FIRST_SECONDS, "waiting until Proxmox VE has started its guests"):
        if answer := _start(system, _OTHER_SECONDS, wanted):
            return answer
    found = "guests that ran before the restart aren't started yet: Proxmox VE hasn't started its own"
    return Answer(off=[f"{found}; this host goes on trying (homelab-ran.timer)"])


def program(system: System, _arguments: Sequence[str] = ()) -> None:
    """What the host's own timer starts, every half minute, until nothing is owed.

    :raises Failure: what is noted can't be read.
    """
    if not _may_start(system):
        return
    time.sleep(_GRACE_SECONDS)
    answer = _start(system, 0, Wanted()) if _may_start(system) else None
    if answer:
        started = f"the host itself has started what ran before its restart: {', '.join(answer.started)}"
        for line in [*([started] if answer.started else []), *answer.off]:
            system.log.say(line)
            system.work.write(guests_to_start.NEWS.rpartition("/")[2], f"{line}\n", at_end=True)
    with suppress(OSError):  # a host that wasn't given back has more there
        disk.remove_folder(system.files.at(HOME))


def _start(system: System, seconds: float, wanted: Wanted) -> Answer | None:
    """Those that are owed and off, in Proxmox VE's order.

    :param seconds: for which another one that is at it is waited for.
    :returns: None: another one is at it, or this boot isn't decided.
    :raises Failure: what is noted can't be read.
    """
    with system.work.holding(guests_to_start.LOCK, seconds) as has:
        if not has or not _is_boot_decided(system):
            return None
        answer, api, boot = Answer(), NodeApi(system), need_boot_id(system)
        owed = guests_to_start.noted(system)
        for ran in sorted(owed, key=partial(_place, api)):
            if _is_ending(system):
                break
            if ran.boot != boot:
                started = len(answer.started)
                still = None if ran.guest in wanted.unwanted else _see_to(system, api, ran, wanted, answer)
                owed = [one for one in owed if one != ran] + ([still] if still else [])
                guests_to_start.keep(system, owed)
                if owed and len(answer.started) > started:
                    time.sleep(int(_startup(api, ran).get("up", 0)))  # so much later comes the next one
        if not owed:
            guests_to_start.forget(system)  # also what a cut has left of the rest
        return answer


def _is_boot_decided(system: System) -> bool:
    """Whether this boot is to stay, and Proxmox VE has started what it starts.

    :raises Failure: what is noted of it can't be read.
    """
    if _is_ending(system):
        return False
    if trial.state(system) == "running":
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


def _place(api: NodeApi, ran: Ran) -> tuple[int, int]:
    """By `startup: order=`, then by id. A guest without an order comes last (pve_parse_startup_order)."""
    return int(_startup(api, ran).get("order", _LAST_ORDER)), ran.guest


def _startup(api: NodeApi, ran: Ran) -> dict[str, str]:
    with suppress(Failure):  # whether it can be read is asked once more
        return parse("startup", api.get(f"/{KINDS[ran.program].name}/{ran.guest}/config").get("startup", ""))
    return {}


def _see_to(system: System, api: NodeApi, ran: Ran, wanted: Wanted, answer: Answer) -> Ran | None:
    """Starts one that is owed a start and off; what of it is said goes into the answer.

    :returns: None: nothing is owed of it any more.
    """
    guest: Guest | None = None
    name = f"{KINDS[ran.program].label} {ran.guest}"
    try:
        guest = _CLASSES[ran.program](system, api, ran.guest)
        has_ha = ha.is_managed(system, f"{guest.kind.ha}:{ran.guest}")
        if not guest.is_here or guest.runs() or has_ha or not power.is_to_run_again(guest):
            return None
        if title := guest.config.get("name", guest.config.get("hostname")):
            name += f" ({title})"
        takes_card = hookscripts.is_homelabs(guest.config.get("hookscript", ""))
        if ran.guest in wanted.later or takes_card and system.work.is_held():
            return ran  # for the run; what it leaves off is started after it
        if lock := guest.config.get("lock"):
            cure = f"once nothing works on it: `{ran.program} unlock {ran.guest}`"
            raise Failure(f"{name} started", f"it is locked, {lock} ({cure})", "Proxmox VE refuses it", cure)
        power.start(guest)
    except SwitchedElsewhere:
        return None
    except Failure as failure:
        still: Ran | None = replace(ran, told=True)
        found = failure.found.partition("\n")[0]
        text = f"could not be started at once: {found}"
        if guest and guest.begun:
            text, still = f"did not start after it: {found} (`{ran.program} start {ran.guest}`)", None
        if not still or not ran.told:
            answer.off.append(system.log.clean(f"{name} ran before the restart, and {text}"))
        return still
    answer.started.append(name)
    return None
