"""The guests that homelab has switched off, or is about to, and that are to run again: each is started once, or by
nobody. A restart is among it: Proxmox VE itself starts only those with `onboot` (get_start_stop_list of
PVE::API2::Nodes).

/var/lib/homelab/owed lists them. A guest stands there, on the disk, before it goes off, until it runs or somebody else
has switched it. Its tasks in Proxmox VE's log tell that; what a clock said counts nowhere. While the list has a guest,
homelab-owed.timer looks at it (layers/start_guests.py). /run/homelab/started, which goes with the boot, tells the next
`up` what became of them without one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from remote_scripts.notes.guest_note import identity
from remote_scripts.pve import api, guest_conf, guest_tasks, guests, pmxcfs
from remote_scripts.pve.guest_kinds import KINDS, Kind
from remote_scripts.tools import boot_service, notes
from remote_scripts.tools.errors import Failure, UnreadableError
from remote_scripts.tools.files import HOME
from remote_scripts.tools.kernel import boot_id
from remote_scripts.tools.state import WRITING
from remote_scripts.tools.system import System

OWED = f"{HOME}/owed"
#: What the host runs by itself to start them.
PROGRAM = f"{HOME}/owed-program"
_TIMER = boot_service.Timer("homelab-owed", PROGRAM)
#: What became of them in this boot without an `up`, a line each.
NEWS = "/run/homelab/started"
#: Why a guest of the verdict `unknown` isn't started.
UNKNOWN = "Proxmox VE's log doesn't tell whether homelab or somebody else has switched it off: start it if it is to run"
#: How it is said that a guest hasn't heeded homelab's shutdown; the time follows.
ASKED = "asked to shut down at"
_LOCK_SECONDS = 60.0
# It ignores SIGTERM, and its next start goes on from wherever it is killed; that it was is no failure, nor that its
# program has gone since (2).
_SERVICE_TEXT = f"""\
# Written by homelab: starts the guests again that homelab has switched off. Gone then.
[Unit]
Description=homelab: start the guests again that it has switched off
ConditionPathExists={PROGRAM}
After=pve-guests.service
RequiresMountsFor={HOME}

[Service]
Type=oneshot
# It isn't worth a line each time that nothing can be done yet.
SyslogLevel=notice
LogLevelMax=notice
SuccessExitStatus=1 2 SIGKILL
ExecStart={boot_service.PYTHON} {PROGRAM}
KillSignal=SIGKILL
"""
_TIMER_TEXT = """\
# Written by homelab: see homelab-owed.service.
[Unit]
Description=homelab: look at the guests that it has switched off

[Timer]
OnActiveSec=30s
OnUnitInactiveSec=60s
AccuracySec=1s

[Install]
WantedBy=timers.target
"""
Why = Literal["change", "restart", "handover"]
#: Whether a guest that is off is to be started: nobody else has switched it; somebody else has, or it was started
#: since; the log doesn't tell who has switched it off; its host is yet to be restarted.
Verdict = Literal["due", "over", "unknown", "not yet"]


@dataclass(frozen=True, kw_only=True)
class Debt:
    """A guest that is to run again."""

    program: Literal["qm", "pct"]
    guest: int
    name: str
    """For people, such as `VM 103 (Sandbox)`."""
    identity: str
    """Tells it from a later one of its id (guest_note.py)."""
    why: Why
    """Its options are changed, its host is restarted, or it has a card that a VM gets."""
    boot: str
    """The host's boot in which that was noted."""
    known: tuple[str, ...]
    """UPIDs of its tasks, and of restarts of the host, by then."""
    ours: tuple[str, ...] = ()
    """UPIDs of homelab's shutdowns since."""
    is_seen: bool = False
    """What has switched it off was seen in the log, and is known: the log may lose that by now."""
    card: str = ""
    """The card that a VM gets; the guest is started when it is back."""
    waits: str = ""
    """Why it wasn't started when that was last tried."""

    @property
    def kind(self) -> Kind:
        """Its kind."""
        return KINDS[self.program]

    @property
    def key(self) -> tuple[str, int]:
        """By which it stands in the list."""
        return self.program, self.guest

    def is_yet_to_come(self, boot: str) -> bool:
        """Whether it is noted for a restart that ends this very boot."""
        return (self.why, self.boot) == ("restart", boot)

    @property
    def said(self) -> str:
        """That it is to run again, and why it doesn't yet, in words."""
        if self.waits.startswith(ASKED):
            return f"{self.name} was {self.waits}; if it goes off soon, this host starts it again"
        waits = self.waits or "this host starts it once no run is at work"
        return f"{self.name} was switched off by homelab, and isn't started yet: {waits}"

    def since(self, tasks: Iterable[Mapping[str, Any]], known: Collection[str] = ()) -> list[Mapping[str, Any]]:
        """What has switched it since. A start that failed has not; and whoever reboots it wants it on.

        :param tasks: its tasks that the log has.
        :param known: further UPIDs that don't count.
        """
        new = (task for task in tasks if task["upid"] not in self.known and task["upid"] not in known)
        switched = (task for task in new if task["type"] not in self.kind.reboots)
        return [task for task in switched if not guest_tasks.is_failed_start(self.kind, task)]


def verdict(
    debt: Debt, boot: str, since: Collection[Mapping[str, Any]], restarts: Iterable[Mapping[str, Any]]
) -> Verdict:
    """Whether it is to be started, if it is off. A start ends what is owed, homelab's own, too; and so does a stop:
    homelab shuts guests down.

    :param boot: the host's, now.
    :param since: what has switched it since (Debt.since).
    :param restarts: tasks by which this node has shut all its guests down, or started them (guest_tasks.restarts).
    """
    others = [task for task in since if task["upid"] not in debt.ours]
    is_stopped = any(task["type"] == debt.kind.stops[1] for task in others)
    if is_stopped or any(task["type"] in debt.kind.starts for task in since):
        return "over"
    if debt.is_yet_to_come(boot):
        return "not yet"
    if debt.why != "restart":
        is_seen = debt.is_seen or len(others) < len(since)
        return "unknown" if not is_seen else "over" if others else "due"
    if debt.is_seen:
        return "over" if others else "due"
    end = _find_end([task for task in restarts if task["upid"] not in debt.known])
    if not others:  # of a boot that ended without a shutdown; else it was off by then, by itself
        return "unknown" if end and guest_tasks.is_well(end.get("status", "")) else "due"
    # The host shuts each down once: a second one is its owner's, who may do so while it is off.
    return "due" if end and len(others) == 1 and _is_of(others[0], end, debt.kind) else "over"


def _find_end(restarts: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The task by which the host has shut its guests down as the debt's boot ended; None: it has not, as after a power
    cut. No clock counts. The last `stopall` of a boot is its end: one of an owner (Bulk Shutdown) is of the same type
    and user, and has another one after it. A task that comes later in the log, and earlier by the kernel's clock, is of
    a later boot.

    :param restarts: those since the debt was noted, the latest first.
    """
    end, later = None, 0
    for task in restarts:
        if task["type"] == guest_tasks.STOPALL and later < task["pstart"]:
            end = task
        later = task["pstart"]
    return end


def _is_of(task: Mapping[str, Any], end: Mapping[str, Any], kind: Kind) -> bool:
    """Whether a guest's task is the shutdown that its host has begun: both are of one boot."""
    is_roots = (task["type"], task["user"]) == (kind.stops[0], api.USER)
    return is_roots and task["pstart"] >= end["pstart"]


@dataclass(frozen=True)
class _List:
    debts: tuple[Debt, ...] = ()


_NOTE = notes.Note(OWED, _List)


def noted(system: System) -> list[Debt]:
    """The guests that are owed a start, in the order in which they were noted.

    :raises Failure: it can't be read.
    """
    try:
        return list((_NOTE.read(system.files) or _List()).debts)
    except UnreadableError as error:
        raise error.but(
            found=f"{error.found}: {OWED}",
            why="which guests homelab has switched off, and starts again, stands there alone",
            next=f"remove {OWED}, and start the guests that are off and are to run: which ones isn't known then; then "
            "run the same again",
        ) from error


def of(system: System, kind: Kind, vmid: int) -> Debt | None:
    """What is owed to a guest; errors as of `noted`."""
    return next((debt for debt in noted(system) if debt.key == (kind.program, vmid)), None)


def put(system: System, debt: Debt) -> None:
    """Notes a guest, in the place of what was noted of it; this boot's timer looks at it.

    :raises Failure: it can't be noted.
    """
    _change(system, lambda debts: [*(one for one in debts if one.key != debt.key), debt])
    done = system.run.do("systemctl", "start", "homelab-owed.timer", seconds=_LOCK_SECONDS)
    if done.status != 0:
        system.log.say(f"note: homelab-owed.timer has not started: {done.text}")


def update(system: System, debt: Debt) -> None:
    """Notes more of a guest that stands in the list; errors as of `put`."""
    _change(system, lambda debts: [debt if one.key == debt.key else one for one in debts])


def drop(system: System, *debts: Debt) -> None:
    """Nothing is owed to these any more, and what was said of them is no news; errors as in `put`."""
    keys = {debt.key for debt in debts}
    _change(system, lambda noted: [one for one in noted if one.key not in keys])
    names, said = tuple(f"{debt.name} " for debt in debts), news(system)
    left = [line for line in said if not line.startswith(names)]
    with suppress(OSError):  # it is said twice then
        if left != said:
            system.work.write(NEWS.rpartition("/")[2], "".join(f"{line}\n" for line in left))


def note_running(system: System) -> None:
    """Before a restart: the guests that run now, beside those that are owed a start.

    :raises Failure: Proxmox VE gives no answer; as of `put`.
    """
    boot, running = boot_id(system), dict[tuple[str, int], Debt]()
    for guest in guests.running(system):
        kind, node = KINDS[guest.program], pmxcfs.this_node(system).name
        if not guests.is_on(api.of(system).get(f"/{kind.name}/{guest.id}/status/current")):
            continue
        tasks, restarts = guest_tasks.switching(api.of(system), kind, guest.id), guest_tasks.restarts(api.of(system))
        if any("endtime" not in task and task["type"] not in kind.starts + kind.reboots for task in tasks):
            continue  # it is being switched off
        running[guest.program, guest.id] = Debt(
            program=guest.program,
            guest=guest.id,
            name=str(guest),
            identity=identity(guest_conf.options_of(system, kind, node, guest.id)),
            why="restart",
            boot=boot,
            known=tuple(task["upid"] for task in (*tasks, *restarts)),
        )
    again = {*running, *(one.key for one in _of_restart(system))}
    _change(system, lambda debts: [*(one for one in debts if one.key not in again), *running.values()])


def drop_restart(system: System) -> None:
    """This boot isn't ended after all; errors as of `put`."""
    # Also where nothing is noted: a run that was cut short may have left the rest of it.
    drop(system, *_of_restart(system))


def _of_restart(system: System) -> list[Debt]:
    """Those of a restart that is yet to come."""
    return [debt for debt in noted(system) if debt.is_yet_to_come(boot_id(system))]


def leave_to_host(system: System) -> None:
    """For a host that is given back. Nothing is started: what is still off is said, and the host sees to it, but for
    those of which it can't tell.

    :raises Failure: as of `put`.
    """
    drop_restart(system)
    powers = {debt: guests.power_of(system, debt.program, str(debt.guest), 0) for debt in noted(system)}
    drop(system, *(debt for debt, power in powers.items() if power in ("on", "gone")))
    lost = [debt for debt in noted(system) if debt.waits == UNKNOWN or debt.why != "restart" and not debt.ours]
    for debt in lost:
        system.log.say(f"note: {replace(debt, waits=UNKNOWN).said}")
    drop(system, *lost)
    if off := noted(system):
        system.log.say(
            "note: guests that homelab has switched off are still off; this host starts them by itself once no run is "
            f"at work (homelab-owed.timer): {' '.join(str(debt.guest) for debt in off)}"
        )


def _change(system: System, changed: Callable[[list[Debt]], list[Debt]]) -> None:
    """Changes the list: what starts anybody is there before it has anybody."""
    wanted = f"which guests are to run again, noted in {OWED}"
    with system.work.alone(WRITING, _LOCK_SECONDS, wanted):
        before = noted(system)
        debts = changed(before)
        if debts and debts == before:  # a full disk is in nobody's way
            return
        try:
            if debts:
                if {one.key for one in debts} - {one.key for one in before}:
                    _TIMER.put(system, _TIMER_TEXT, _SERVICE_TEXT, boot_service.program("start_guests"))
                _NOTE.write(system.files, _List(tuple(debts)))
            else:
                system.files.remove(OWED)
                _TIMER.remove(system)
        except OSError as error:
            raise Failure(
                wanted,
                error.strerror or str(error),
                "a guest that a killed run leaves off would stay so",
                "make room there, or mend the disk, then run `pulumi up` again",
            ) from error


def news(system: System) -> list[str]:
    """What became of them in this boot without an `up`, and wasn't told yet."""
    return system.files.text(NEWS).splitlines()
