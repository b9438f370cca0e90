"""The guests that ran before a restart of this program's run again: by an `up` once the boot is confirmed, or by the
host's own timer. /var/lib/homelab/ran and homelab-ran.{service,timer} go.

A start is a task of Proxmox VE's own, which goes on where this process is cut off, and by which nothing is started
twice. A guest that somebody's task, HA, or a run that hands it a card sees to is left to them, and so is what `up` is
to start itself, or wants off.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from remote_scripts.shared import api, guest_tasks, guests_to_start, ha, hookscripts, switch
from remote_scripts.shared.guests import KINDS
from remote_scripts.shared.guests_to_start import Line
from remote_scripts.shared.kernel import need_boot_id
from remote_scripts.shared.restart import is_going_down
from remote_scripts.shared.turn import is_restart_ordered
from remote_scripts.tools import disk
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.run import DO_SECONDS
from remote_scripts.tools.system import System

#: For so long Proxmox VE, which starts its own guests first, is waited for, in seconds.
FIRST_SECONDS = 300
_OTHER_SECONDS = 5.0
# A boot that came later than this isn't that restart's: a server may take half an hour, and the switch gives a boot
# back.
_COUNTS_SECONDS = 7200
# In a boot one that can't be started is given up after this: a backup that was missed begins at the boot, and its lock
# may stay for hours.
_GIVEN_UP_SECONDS = 86400
# A run that has confirmed a boot takes the host within this time (homelab/provider/boot_verification.py).
_GRACE_SECONDS = 60.0
# What the host has told of them in this boot.
_TOLD = "/run/homelab/ran-told"
_NUMBER = re.compile(r"[1-9][0-9]{0,11}")
_BOOTED = re.compile(r"^btime ([1-9][0-9]{0,11})$", re.MULTILINE)
_STARTS, _SHUTDOWNS = ("qmstart", "vzstart"), ("qmshutdown", "vzshutdown")
_ORDER = re.compile(r",(?:order=)?([0-9]{1,9})(?:,|$)")
_NEXT_AFTER = re.compile(r",up=([0-9]{1,3})(?:,|$)")
_IS_UP = frozenset(("running", "degraded", "maintenance"))
_LAST_ORDER = 9999999999
# Tasks that say nothing of whether a user wants a guest on: consoles, and what jobs do at their time, also to one
# that is off.
_LEAVES_POWER = guest_tasks.CONSOLES | {"vzdump", "qmsnapshot", "qmdelsnapshot", "vzsnapshot", "vzdelsnapshot"}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Ids of guests: `later`: the run that asks starts them itself; `unwanted`: it wants them off."""

    later: tuple[int, ...] = ()
    unwanted: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
    """In words: who runs again; who stays off, and why; who is to be started later."""

    started: list[str] = field(default_factory=list)
    off: list[str] = field(default_factory=list)
    later: list[str] = field(default_factory=list)


def apply(system: System, wanted: Wanted) -> Answer:
    """Starts them, one after the other.

    :raises Failure: what is noted can't be read.
    """
    for _ in system.work.tries(FIRST_SECONDS, "waiting until Proxmox VE has started its guests"):
        starts = _start(system, _OTHER_SECONDS, wanted)
        if starts:
            for text in starts.waits:
                system.log.say(f"note: {text}; this host goes on trying (homelab-ran.timer)")
            return starts.done
    system.log.say(
        "note: guests that ran before the restart aren't started yet: Proxmox VE hasn't started its own; this host "
        "goes on trying (homelab-ran.timer)"
    )
    return Answer()


def program(system: System, _arguments: Sequence[str] = ()) -> None:
    """What the host's own timer starts, every half minute, until nothing is owed.

    :raises Failure: what is noted can't be read.
    """
    if system.files.exists(guests_to_start.RAN) and _may_start(system):
        time.sleep(_GRACE_SECONDS)
        starts = _start(system, 0, Wanted()) if _may_start(system) else None
        if starts:
            done = starts.done
            started = f"the host itself has started what ran before its restart: {', '.join(done.started)}"
            _report_to_next_run(system, [*([started] if done.started else []), *done.off, *starts.waits])
    if not system.files.exists(guests_to_start.RAN):
        _forget(system)


def _start(system: System, seconds: float, wanted: Wanted) -> _GuestStarts | None:
    """Those that are owed and off, in Proxmox VE's order.

    :param seconds: for which another one that is at it is waited for.
    :returns: None: another one is at it, or this boot isn't decided.
    :raises Failure: what is noted can't be read.
    """
    with system.work.holding(guests_to_start.LOCK, seconds) as has:
        booted = _BOOTED.search(system.files.text("/proc/stat"))
        if not has or not booted or not _is_boot_decided(system):
            return None
        starts = _GuestStarts(system, int(booted[1]), wanted)
        starts.start_all()
        return starts


def _is_boot_decided(system: System) -> bool:
    """Whether this boot is to stay, and Proxmox VE has started what it starts.

    :raises Failure: what is noted of it can't be read.
    """
    if _is_ending(system):
        return False
    if switch.is_armed_before(system) and not (system.files.is_pending("boot") or switch.is_another_boot(system)):
        return False
    state = system.run.ask("systemctl", "is-active", "pve-guests.service").text
    # Where it has failed, or is disabled, it starts nothing any more in this boot.
    has_come_up = state == "inactive" and system.run.ask("systemctl", "is-system-running").text in _IS_UP
    return state in ("active", "failed") or has_come_up


def _is_ending(system: System) -> bool:
    """Whether this boot is about to end: who is started now would be shut down at once, and be owed nothing after."""
    return switch.is_rolling_back(system) or is_restart_ordered(system) or is_going_down(system)


def _forget(system: System) -> None:
    """Without the host's lock: it removes nothing but these files. What another process notes meanwhile stays."""
    with system.work.holding(guests_to_start.LOCK, 0) as has:
        if not has or system.files.exists(guests_to_start.RAN):
            return
        guests_to_start.forget(system)
    with suppress(OSError):
        disk.remove_folder(system.files.at(HOME))


def _may_start(system: System) -> bool:
    return _is_boot_decided(system) and not system.work.is_held()


def _report_to_next_run(system: System, texts: list[str]) -> None:
    """By what it says anyway, each once in a boot. Of a host that was given back nothing is kept."""
    messages = system.files.text(_TOLD).split("\n")
    new = [text for text in texts if text not in messages]
    if not new:
        return
    system.work.write(_TOLD.rpartition("/")[2], "".join(f"{text}\n" for text in new), at_end=True)
    text = "; ".join(new)
    system.log.say(text)
    if all(name.startswith("ran") for name in system.files.names(HOME)):
        return
    path = switch.ROLLED_BACK if system.files.exists(switch.ROLLED_BACK) else switch.JUDGED
    before = system.files.text(path)
    system.files.write(path, f"{before}{'; ' if before else ''}{text}".encode(), 0o600)


def _by_hand(line: Line) -> str:
    return f"`{line.program} start {line.guest}`"


class _GuestStarts:
    """One go at all of them. `booted`: when this boot began, in seconds since 1970; `waits`: what those wait for that
    are to be started later, in words.
    """

    def __init__(self, system: System, booted: int, wanted: Wanted) -> None:
        self._system, self._booted = system, booted
        self._later, self._unwanted = ({*map(str, ids)} for ids in (wanted.later, wanted.unwanted))
        self._api = api.of(system)
        self._left: list[Line] = []
        self.done = Answer()
        self.waits: list[str] = []
        self._guests: dict[tuple[str, str], dict[str, Any]] = {}
        self._unanswered = ""

    def _ask(self) -> None:
        """Which guests there are, their power and locks; no more once there was no answer."""
        if self._unanswered:
            return
        self._guests = {}
        try:
            for program, kind in KINDS.items():
                self._guests |= {(program, str(guest["vmid"])): guest for guest in self._api.get(f"/{kind}")}
        except Failure as failure:
            self._unanswered = failure.found

    def start_all(self) -> None:
        self._ask()
        self._left = sorted(guests_to_start.lines(self._system), key=self._start_order)
        for line in [*self._left]:
            is_one = line.program in KINDS and _NUMBER.fullmatch(line.guest) and _NUMBER.fullmatch(line.since)
            if is_one and line.guest not in self._unwanted and not self._is_settled(line):
                self.done.later.append(self._describe(line))
                continue
            # Nothing is owed of it any more. The last one goes with all the rest.
            self._left.remove(line)
            if self._left:
                guests_to_start.write(self._system, self._left)
        if not self._left:
            guests_to_start.forget(self._system)

    def _start_order(self, line: Line) -> tuple[int, int]:
        """By `startup: order=`, then by id. A guest without an order comes last (pve_parse_startup_order)."""
        order = None
        if self._is_off(line):
            with suppress(Failure):  # whether it can be read is asked once more
                order = _ORDER.search(f",{self._option(line, 'startup')}")
        return int(order[1]) if order else _LAST_ORDER, int(line.guest) if line.guest.isdecimal() else 0

    def _is_off(self, line: Line) -> bool:
        """Whether it is a guest of this node that doesn't run."""
        return str(self._guests.get((line.program, line.guest), {}).get("status", "running")) != "running"

    def _path(self, line: Line) -> str:
        return f"/{KINDS[line.program]}/{line.guest}"

    def _option(self, line: Line, key: str) -> str:
        """What its configuration says for its next start.

        :raises Failure: it can't be told.
        """
        return str(self._api.get(f"{self._path(line)}/config").get(key, ""))

    def _describe(self, line: Line) -> str:
        name = self._guests.get((line.program, line.guest), {}).get("name", "")
        return f"{'container' if line.program == 'pct' else 'VM'} {line.guest}{f' ({name})' if name else ''}"

    def _is_settled(self, line: Line) -> bool:
        """False: it is still owed a start."""
        if line.boot == need_boot_id(self._system):
            return False  # not restarted yet
        self._ask()  # others were started meanwhile, one after the other, for up to an hour
        if self._unanswered:
            return self._is_given_up(line, self._unanswered)
        if not self._is_off(line):
            return True
        try:
            if self._is_seen_to(line):
                return True
            if self._booted - int(line.since) > _COUNTS_SECONDS:
                self._add_off(
                    line, f"before a restart of this program's, and stays off: that is too long ago ({_by_hand(line)})"
                )
                return True
            if lock := self._guests[line.program, line.guest].get("lock"):
                cure = f"once nothing works on it: `{line.program} unlock {line.guest}`"
                return self._is_given_up(line, f"it is locked, {lock}", cure)
            if self._is_left_to_run(line) or _is_ending(self._system):
                return False
            self._system.log.say(f"starting {self._describe(line)} again, which ran before the restart")
            upid = self._api.post(f"{self._path(line)}/status/start")
        except Failure as failure:
            return self._is_given_up(line, failure.found)
        self._follow(line, upid)
        return True

    def _is_seen_to(self, line: Line) -> bool:
        """Whether a task, or HA, sees to it. Of the tasks since it was noted those of the host that went down don't
        count: root's shutdowns, after its `stopall` (pve-guests.service). Nor does a start before: it ran then.

        :raises Failure: that can't be told.
        """
        has_ha = ha.is_managed(self._system, f"{'ct' if line.program == 'pct' else 'vm'}:{line.guest}")
        # What has a time to come is of an earlier boot, whose clock was wrong.
        since = {"since": min(int(line.since), self._booted), "until": int(time.time())}
        noted: list[dict[str, Any]] = self._api.get("/tasks", source="all", limit=guest_tasks.MOST, **since)
        down = min((task["starttime"] for task in noted if task["type"] == "stopall"), default=float("inf"))
        tasks = [
            task
            for task in noted
            if task["id"] == line.guest
            and task["type"] not in _LEAVES_POWER
            and not (task["type"] in _STARTS and task["starttime"] <= down < float("inf"))
            and not (
                task["type"] in _SHUTDOWNS and task["user"] == "root@pam" and down <= task["starttime"] <= self._booted
            )
        ]
        last = max(tasks, key=lambda task: (task["starttime"], task["pstart"]), default={"type": ""})
        status = last.get("status", "") if last["type"] in _STARTS and "endtime" in last else "OK"
        if not guest_tasks.is_well(status) and not has_ha and line.guest not in self._later:
            self._add_off(line, f"before the restart, and has not started again: {status} ({_by_hand(line)})")
        return bool(tasks) or has_ha

    def _is_left_to_run(self, line: Line) -> bool:
        """Whether a run starts it, or hands it a card: what a run leaves off is started after it.

        :raises Failure: that can't be told.
        """
        takes_card = line.program == "qm" and hookscripts.is_homelabs(self._option(line, "hookscript"))
        return line.guest in self._later or (takes_card and self._system.work.is_held())

    def _is_given_up(self, line: Line, why: str, cure: str = "") -> bool:
        """Of one that can't be started now. `cure`: what has to be done before."""
        if time.time() - self._booted <= _GIVEN_UP_SECONDS:
            text = f"{self._describe(line)} ran before the restart, and isn't started yet: {why}"
            self.waits.append(self._system.log.clean(f"{text} ({cure})" if cure else text))
            return False
        by_hand = f"{cure}, then {_by_hand(line)}" if cure else _by_hand(line)
        self._add_off(line, f"before the restart, and for a day it couldn't be started: {why} ({by_hand})")
        return True

    def _add_off(self, line: Line, text: str) -> None:
        self.done.off.append(self._system.log.clean(f"{self._describe(line)} ran {text}"))

    def _follow(self, line: Line, upid: str) -> None:
        """To the end of its start, which goes on without this process, too."""
        status, name = "", self._describe(line)
        for _ in self._system.work.tries(DO_SECONDS, f"waiting until {name} has started"):
            with suppress(Failure):  # pvedaemon starts anew
                status = self._api.get(f"/tasks/{upid}/status").get("exitstatus", "")
            if status:
                break
        if not guest_tasks.is_well(status):
            found = f"has not started again: {status}" if status else "is still being started"
            self._add_off(line, f"before the restart, and {found} ({_by_hand(line)})")
            return
        self.done.started.append(name)
        with suppress(Failure):
            # So many seconds later comes the next one.
            wait = _NEXT_AFTER.search(f",{self._option(line, 'startup')}")
            if wait and len(self._left) > 1:
                time.sleep(int(wait[1]))
