"""The guests that ran before a restart of this program's: what is noted of them, and forgotten. Proxmox VE itself
starts only those with `onboot` (get_start_stop_list of PVE::API2::Nodes). Each of the others is started once, when the
boot is confirmed, judged by the host, or given back (layers/start_guests.py).

/var/lib/homelab/ran lists them; a guest goes from it once nothing more is owed to it. /run/homelab/started, which goes
with the boot, tells the next `up` what became of them without one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

from remote_scripts.notes import handover
from remote_scripts.pve import api, guest_tasks, guests
from remote_scripts.pve.guest_kinds import KINDS, Kind
from remote_scripts.tools import boot_service, notes
from remote_scripts.tools.files import HOME
from remote_scripts.tools.kernel import boot_id
from remote_scripts.tools.system import System

RAN = f"{HOME}/ran"
#: What the host runs by itself to start them.
PROGRAM = f"{HOME}/ran-program"
_TIMER = boot_service.Timer("homelab-ran", PROGRAM)
#: What became of them in this boot without an `up`, a line each.
NEWS = "/run/homelab/started"
#: The lock for changing the note, and for starting one of them.
LOCK = "ran"
# For so long another process that starts some is waited for, in seconds.
_LOCK_SECONDS = 60.0
# It ignores SIGTERM, and its next start goes on from wherever it is killed; that it was is no failure.
_SERVICE_TEXT = f"""\
# Written by homelab: starts the guests again that ran before its restart of this host. Gone then.
[Unit]
Description=homelab: start the guests that ran before the restart
ConditionPathExists={PROGRAM}
After=pve-guests.service
RequiresMountsFor={HOME}

[Service]
Type=oneshot
# It isn't worth a line each time that nothing can be done yet.
SyslogLevel=notice
LogLevelMax=notice
SuccessExitStatus=1 SIGKILL
ExecStart={boot_service.PYTHON} {PROGRAM}
KillSignal=SIGKILL
"""
_TIMER_TEXT = """\
# Written by homelab: see homelab-ran.service.
[Unit]
Description=homelab: wait until the boot is confirmed or given back

[Timer]
OnBootSec=30s
OnUnitInactiveSec=30s
AccuracySec=1s

[Install]
WantedBy=timers.target
"""


@dataclass(frozen=True)
class Ran:
    """A guest that ran. `program`: qm or pct; `at`: when that was noted, in seconds since 1970, in which boot; `last`:
    the UPID of the last task that had switched it by then, empty where it had none; `told`: it was said already why it
    isn't started yet.
    """

    program: Literal["qm", "pct"]
    guest: int
    at: int
    boot: str
    last: str
    told: bool = False


@dataclass(frozen=True)
class _Noted:
    ran: tuple[Ran, ...]


_NOTE = notes.Note(RAN, _Noted)


def noted(system: System) -> list[Ran]:
    """Who ran, and is owed a start.

    :raises Failure: it can't be read.
    """
    found = _NOTE.read(system.files)
    return list(found.ran) if found else []


def of(system: System, kind: Kind, vmid: int) -> Ran | None:
    """A guest, if it ran before a restart and is owed a start; errors as of `noted`."""
    boot = boot_id(system)
    return next(
        (ran for ran in noted(system) if (ran.program, ran.guest) == (kind.program, vmid) and ran.boot != boot), None
    )


def keep(system: System, owed: list[Ran]) -> None:
    """Notes these alone.

    :raises OSError: it can't be written.
    """
    if owed:
        _NOTE.write(system.files, _Noted(tuple(owed)))
    else:
        forget(system)


def note_running(system: System) -> str:
    """Before the restart: the guests that run now, and those that a handover or an earlier restart still owes a start.

    :returns: why that can't be noted; empty: it is.
    :raises Failure: Proxmox VE gives no answer; as of `noted`.
    """
    running = _running(system)
    here, boot = {(ran.program, ran.guest) for ran in running}, boot_id(system)
    try:
        with system.work.holding(LOCK, _LOCK_SECONDS) as has:
            if not has:
                return f"guests that ran before the last restart are being started ({RAN})"
            owed = [ran for ran in noted(system) if ran.boot != boot and (ran.program, ran.guest) not in here]
            if running or owed:
                # Not started: it is for the next boot.
                _TIMER.put(system, _TIMER_TEXT, _SERVICE_TEXT, boot_service.program("start_guests"))
            keep(system, [*running, *owed])
    except OSError as error:
        return f"which guests run can't be noted in {RAN}: {error.strerror}"
    return ""


def _running(system: System) -> list[Ran]:
    """But for those that are being switched off.

    :raises Failure: Proxmox VE gives no answer.
    """
    at, boot, found = int(time.time()), boot_id(system), list[Ran]()
    owed = [guests.Guest("pct", int(ctid), "") for ctid in handover.owed_starts(system)]
    for guest in [*guests.running(system), *owed]:
        kind = KINDS[guest.program]
        last = next(iter(guest_tasks.switching(api.of(system), kind, guest.id)), dict[str, Any]())
        if last.get("type") not in kind.stops or last.get("endtime", at) < at:
            found.append(Ran(guest.program, guest.id, at, boot, last.get("upid", "")))
    return found


def news(system: System) -> list[str]:
    """What became of them in this boot without an `up`, and wasn't told yet."""
    return system.files.text(NEWS).splitlines()


def drop(system: System) -> None:
    """What was noted in this boot, which isn't restarted after all.

    :raises Failure: as of `noted`.
    """
    # Also where nothing is noted: a run that was cut short may have left the rest of it.
    keep(system, [ran for ran in noted(system) if ran.boot != boot_id(system)])


def leave_to_host(system: System) -> None:
    """For a host that is given back. Nothing is started: what is still off is said, and the host sees to it.

    :raises Failure: as of `noted`.
    """
    ran = noted(system)
    owed = [one for one in ran if guests.power_of(system, one.program, str(one.guest), 0) not in ("on", "gone")]
    if owed:
        system.log.say(
            "note: guests that ran before the restart of this host are still off; it starts them by itself once no run "
            f"is at work (homelab-ran.timer): {' '.join(str(one.guest) for one in owed)}"
        )
        return
    forget(system)


def forget(system: System) -> None:
    """The note first: what a cut leaves of the rest takes itself away. What runs of it meanwhile goes on to its end."""
    system.files.remove(RAN)
    _TIMER.remove(system)
