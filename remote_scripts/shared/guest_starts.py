"""The guests that ran before a restart, started again. A start leaves a task, so that a process that is cut off between
two of them starts nothing twice. A guest that a user's task, HA, or a run that hands it a card sees to is left to them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field

from remote_scripts.shared import (
    activity,
    cluster,
    guest_conf,
    guest_tasks,
    guests,
    guests_to_start,
    ha,
    hookscripts,
    pmxcfs,
    switch,
)
from remote_scripts.shared.guests_to_start import Line
from remote_scripts.shared.kernel import need_boot_id
from remote_scripts.shared.restart import is_going_down
from remote_scripts.shared.turn import is_restart_ordered
from remote_scripts.tools import disk
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.run import DO_SECONDS
from remote_scripts.tools.system import System

# A boot that came later than this isn't that restart's: a server may take half an hour, and the switch gives a boot
# back. After as long in a boot one that can't be told is given up.
_COUNTS_SECONDS = 7200
# A guest on which something works for longer is given up as well.
_WORK_SECONDS = 86400
# A run that has confirmed a boot takes the host within this time (homelab/provider/boot_verification.py).
_GRACE_SECONDS = 60.0
_STATUS_SECONDS = 20.0
# What the host has told of them in this boot.
_TOLD = "/run/homelab/ran-told"
_ANSWER_BYTES = 1 << 20
_FOLDERS = {"qm": "qemu-server", "pct": "lxc"}
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


class UnknownError(Exception):
    """What decides whether a guest may be started can't be told now; why, where that is known."""


@dataclass
class Started:
    """Guests, in words: that run again; that stay off, and why; that are to be started later; of these, what they wait
    for.
    """

    started: list[str] = field(default_factory=list)
    off: list[str] = field(default_factory=list)
    owed: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)


def is_boot_decided(system: System) -> bool:
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
    return state in ("active", "failed") or has_come_up or not system.run.has("pvesh")


def _is_ending(system: System) -> bool:
    """Whether this boot is about to end: who is started now would be shut down at once, and be owed nothing after."""
    return switch.is_rolling_back(system) or is_restart_ordered(system) or is_going_down(system)


def start(
    system: System, seconds: float, later: Collection[str] = (), unwanted: Collection[str] = ()
) -> Started | None:
    """Those that are owed and off, in Proxmox VE's order.

    :param seconds: for which another one that is at it is waited for.
    :param later: ids of guests that a run which is at work starts itself.
    :param unwanted: ids of those that it wants off.
    :returns: None: another one is at it, or this boot isn't decided.
    :raises Failure: what is noted can't be read.
    """
    with system.work.holding(guests_to_start.LOCK, seconds) as has:
        booted = _BOOTED.search(system.files.text("/proc/stat"))
        if not has or not booted or not is_boot_decided(system):
            return None
        return _GuestStarts(system, int(booted[1]), later, unwanted).start_all()


def start_alone(system: System) -> None:
    """What the host itself does, every half minute, until nothing is owed.

    :raises Failure: as of `start`.
    """
    if not system.files.exists(guests_to_start.RAN):
        _forget(system)
        return
    if not _may_start(system):
        return
    time.sleep(_GRACE_SECONDS)
    if not _may_start(system):
        return
    starts = start(system, 0)
    if starts is None:
        return
    started = f"the host itself has started what ran before its restart: {', '.join(starts.started)}"
    _report_to_next_run(system, [*([started] if starts.started else []), *starts.off])
    if not system.files.exists(guests_to_start.RAN):
        _forget(system)


def _forget(system: System) -> None:
    """Without the host's lock: it removes nothing but these files. What another process notes meanwhile stays."""
    with system.work.holding(guests_to_start.LOCK, 0) as has:
        if not has or system.files.exists(guests_to_start.RAN):
            return
        guests_to_start.forget(system)
    with suppress(OSError):
        disk.remove_folder(system.files.at(HOME))


def _may_start(system: System) -> bool:
    return is_boot_decided(system) and not system.work.is_held()


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
    """One go at all of them. `booted`: when this boot began, in seconds since 1970."""

    def __init__(self, system: System, booted: int, later: Collection[str], unwanted: Collection[str]) -> None:
        self._system, self._booted, self._later, self._unwanted = system, booted, later, unwanted
        self._left: list[Line] = []
        self._done = Started()

    def start_all(self) -> Started:
        self._left = sorted(guests_to_start.lines(self._system), key=self._start_order)
        for line in [*self._left]:
            is_one = line.program in _FOLDERS and _NUMBER.fullmatch(line.guest) and _NUMBER.fullmatch(line.since)
            if is_one and line.guest not in self._unwanted and not self._is_settled(line):
                self._done.owed.append(self._describe(line))
                continue
            # Nothing is owed of it any more. The last one goes with all the rest.
            self._left.remove(line)
            if self._left:
                guests_to_start.write(self._system, self._left)
        if not self._left:
            guests_to_start.forget(self._system)
        return self._done

    def _start_order(self, line: Line) -> tuple[int, int]:
        """By `startup: order=`, then by id. A guest without an order comes last (pve_parse_startup_order)."""
        order = None
        with suppress(UnknownError):  # whether it can be read is asked once more
            order = _ORDER.search(f",{self._option(line, 'startup')}")
        return int(order[1]) if order else _LAST_ORDER, int(line.guest) if line.guest.isdecimal() else 0

    def _option(self, line: Line, key: str) -> str:
        """What its configuration says for its next start.

        :raises UnknownError: it can't be read.
        """
        try:
            content = pmxcfs.content_of(self._system, f"/etc/pve/{_FOLDERS[line.program]}/{line.guest}.conf")
        except (Failure, KeyError) as error:
            raise UnknownError from error
        if content is None:
            raise UnknownError
        return guest_conf.option_of(guest_conf.own_lines(content.decode("utf-8", "replace")), key)

    def _describe(self, line: Line) -> str:
        word, key = ("container", "hostname") if line.program == "pct" else ("VM", "name")
        name = ""
        with suppress(UnknownError):
            name = self._option(line, key)
        return f"{word} {line.guest}{f' ({name})' if name else ''}"

    def _is_settled(self, line: Line) -> bool:
        """False: it is still owed a start, or that isn't known."""
        if line.boot == need_boot_id(self._system):
            return False  # not restarted yet
        power = guests.power_of(self._system, line.program, line.guest, _STATUS_SECONDS)
        if power in ("on", "gone"):
            return True
        name = self._describe(line)
        try:
            if self._is_seen_to(line, name, power):
                return True
            if power == "unknown":
                raise UnknownError(f"`{line.program} status {line.guest}` doesn't say whether it runs")
            lock = self._option(line, "lock")
            if not lock and cluster.lacks_quorum(self._system):
                raise UnknownError("the cluster has no quorum, or doesn't say so (`pvecm status`)")
            is_left = self._is_left_to_run(line)
        except UnknownError as error:
            return self._is_given_up(line, name, error)
        if self._booted - int(line.since) > _COUNTS_SECONDS:
            self._add_off(
                f"{name} ran before a restart of this program's, and stays off: that is too long ago ({_by_hand(line)})"
            )
            return True
        if lock:
            return self._is_locked_for_good(line, name, lock)
        # Others were started meanwhile, one after the other, for up to an hour; and this run would cut its start off.
        if is_left or _is_ending(self._system) or self._system.work.time_for(DO_SECONDS) < DO_SECONDS:
            return False
        self._start(line, name)
        return True

    def _is_seen_to(self, line: Line, name: str, power: guests.Power) -> bool:
        """Whether a task, or HA, sees to it.

        :raises UnknownError: that can't be told.
        """
        has_ha = self._is_under_ha(line)
        touched, failed = self._tasks_since(line)
        if failed and power == "off" and not has_ha and line.guest not in self._later:
            self._add_off(f"{name} ran before the restart, and has not started again: {failed} ({_by_hand(line)})")
        return touched or has_ha

    def _is_left_to_run(self, line: Line) -> bool:
        """Whether a run starts it, or hands it a card: what a run leaves off is started after it.

        :raises UnknownError: its configuration can't be read.
        """
        takes_card = line.program == "qm" and hookscripts.is_homelabs(self._option(line, "hookscript"))
        return line.guest in self._later or (takes_card and self._system.work.is_held())

    def _is_given_up(self, line: Line, name: str, error: UnknownError) -> bool:
        """Of one that can't be told."""
        why = f": {error}" if str(error) else ""
        if time.time() - self._booted <= _COUNTS_SECONDS:
            self._waits(f"it isn't known yet whether {name} may be started{why}")
            return False
        self._add_off(
            f"{name} ran before the restart, and for two hours it wasn't known whether it may be started{why} "
            f"({_by_hand(line)})"
        )
        return True

    def _is_locked_for_good(self, line: Line, name: str, lock: str) -> bool:
        """One that is locked is started once that has ended, but for a lock that stays."""
        unlock = f"`{line.program} unlock {line.guest}`"
        if time.time() - self._booted > _WORK_SECONDS:
            self._add_off(
                f"{name} ran before the restart, and stays off: it is locked, {lock} (once nothing works on it: "
                f"{unlock}, then {_by_hand(line)})"
            )
            return True
        if busy := activity.at_work(self._system, pmxcfs.this_node(self._system)):
            self._waits(f"{name} is locked, {lock}, and is started once nothing works on it: {busy}")
        else:  # such as a backup that a power cut has ended
            self._add_off(
                f"{name} ran before the restart, and is off: it is locked, {lock}, and nothing works on it; this host "
                f"starts it once {unlock} has taken that lock away"
            )
        return False

    def _waits(self, text: str) -> None:
        self._done.waits.append(self._system.log.clean(text))

    def _add_off(self, text: str) -> None:
        self._done.off.append(self._system.log.clean(text))

    def _start(self, line: Line, name: str) -> None:
        """Once, however it ends. What counts is whether it runs."""
        system = self._system
        system.log.say(f"starting {name} again, which ran before the restart")
        done = system.run.ask(line.program, "start", line.guest, seconds=DO_SECONDS, limit=_ANSWER_BYTES)
        power = guests.power_of(system, line.program, line.guest)
        if power == "unknown":
            self._add_off(
                f"{name} ran before the restart and was started again; whether it runs isn't known "
                f"(`{line.program} status {line.guest}` doesn't say)"
            )
            return
        if power != "on":
            message = done.all_text.splitlines()[-3:] or ["no answer"]
            self._add_off(
                f"{name} ran before the restart, and has not started again: {' '.join(message)} ({_by_hand(line)})"
            )
            return
        self._done.started.append(name)
        with suppress(UnknownError):
            # So many seconds later comes the next one.
            wait = _NEXT_AFTER.search(f",{self._option(line, 'startup')}")
            if wait and len(self._left) > 1:
                time.sleep(int(wait[1]))

    def _is_under_ha(self, line: Line) -> bool:
        """Whether HA starts it by itself.

        :raises UnknownError: that can't be told.
        """
        try:
            if pmxcfs.content_of(self._system, ha.CONFIG) is None and not pmxcfs.this_node(self._system).name:
                raise UnknownError
            return ha.is_managed(self._system, f"{'ct' if line.program == 'pct' else 'vm'}:{line.guest}")
        except Failure as failure:
            raise UnknownError from failure

    def _tasks_since(self, line: Line) -> tuple[bool, str]:
        """Whether a task has been about it since; and how the last of these has ended, if it was a start that failed.

        Not counted: its shutdown by the host that went down, which is root's, after `stopall` (pve-guests.service), and
        what leaves its power alone. Nor its start before that host went down: it ran then, as it was noted.

        :raises UnknownError: the log of tasks can't be read; or the clock was set back so far that what a user has
            done in this boot has an earlier time than the note.
        """
        try:
            tasks = guest_tasks.tasks(self._system, "index.1", "index", "active", last=0)
        except Failure as failure:
            raise UnknownError from failure
        since = int(line.since)
        # Where the clock was set back, when the boot came isn't known.
        booted = self._booted if since <= self._booted else float("inf")
        of_guest = [task for task in tasks if task.guest == line.guest and task.kind not in _LEAVES_POWER]
        for task in of_guest:
            if self._booted <= task.start < since and task.start <= time.time():
                raise UnknownError(f"the clock was set back, and the task {task.kind} {task.guest} may be of this boot")
        of_guest = [task for task in of_guest if task.start >= since]
        stops = (task.start for task in tasks if task.kind == "stopall" and task.start >= since)
        down = min(stops, default=float("inf"))
        if not any(
            not (task.kind in _STARTS and task.start <= down < float("inf"))
            and not (down <= task.start <= booted and task.user == "root@pam" and task.kind in _SHUTDOWNS)
            for task in of_guest
        ):
            return False, ""
        # Of several of one second the latest line.
        last = max(reversed(of_guest), key=lambda task: task.start)
        return True, last.status if last.kind in _STARTS and last.status and not last.well else ""
