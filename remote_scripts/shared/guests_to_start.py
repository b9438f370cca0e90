"""The guests that ran before a restart of this program's: what is noted of them, and forgotten. Proxmox VE starts those
alone that have `onboot` (get_start_stop_list of PVE::API2::Nodes): each of the others is started once, when the boot is
confirmed, judged by the host, or given back (layers/start_guests.py).

/var/lib/homelab/ran has a line for each: `qm 103 SECONDS BOOT`, or `pct 901 …`: when, since 1970, and in which boot it
was noted that it runs. A line goes once nothing is owed any more.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from remote_scripts.shared import boot_service, guests, handover, notes
from remote_scripts.shared.boot_service import UNITS
from remote_scripts.shared.kernel import boot_id
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System

RAN = f"{HOME}/ran"
#: What the host runs by itself to start them.
PROGRAM = f"{HOME}/ran-program"
_SERVICE, _TIMER = f"{UNITS}/homelab-ran.service", f"{UNITS}/homelab-ran.timer"
_LINK = f"{UNITS}/timers.target.wants/homelab-ran.timer"
#: The lock for changing the note, and for starting one of them.
LOCK = "ran"
# For so long it is asked which guests run, and another process that starts some is waited for, in seconds.
_LIST_SECONDS, _LOCK_SECONDS = 60.0, 60.0
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
class Line:
    """A line of the note. `program`: qm or pct; a line with another one, or with a guest or a time that is no number,
    is ignored.
    """

    program: str
    guest: str
    since: str
    boot: str

    def __str__(self) -> str:
        return f"{self.program} {self.guest} {self.since} {self.boot}"


def lines(system: System) -> list[Line]:
    """What is noted.

    :raises Failure: it can't be read.
    """
    wanted = "to know which guests ran before a restart of this host"
    content = notes.need(system, RAN, wanted, "they would stay off, and nothing would say so")
    words = (line.split(None, 3) for line in content.decode("utf-8", "surrogateescape").splitlines())
    return [Line(*[*fields, "", "", "", ""][:4]) for fields in words if fields]


def write(system: System, noted: list[Line]) -> None:
    """Notes these alone.

    :raises OSError: it can't be written.
    """
    content = "".join(f"{line}\n" for line in noted).encode("utf-8", "surrogateescape")
    system.files.write(RAN, content, 0o600)


def note_running(system: System) -> str:
    """Before the restart: the guests that run now, and those that a handover or an earlier restart still owes a start.

    :returns: why that isn't known, or can't be noted; empty: it is.
    :raises Failure: as of `lines`, and `Work.tries`.
    """
    boot, seconds = boot_id(system), str(int(time.time()))
    for _ in system.work.tries(_LIST_SECONDS, "waiting until Proxmox VE says which guests run"):
        try:
            noted = [Line(guest.program, str(guest.id), seconds, boot) for guest in guests.running(system)]
            break
        except Failure as failure:
            why = failure.found
    else:
        return (
            f"Proxmox VE's API gave no answer for {_LIST_SECONDS:.0f} s ({why}): which guests are to run again "
            "afterwards is not known"
        )
    noted += [Line("pct", ctid, seconds, boot) for ctid in handover.owed_starts(system)]
    here = {(line.program, line.guest) for line in noted}
    try:
        with system.work.holding(LOCK, _LOCK_SECONDS) as has:
            if not has:
                return f"guests that ran before the last restart are being started ({RAN})"
            noted += [line for line in lines(system) if line.boot != boot and (line.program, line.guest) not in here]
            if noted:
                # Not started: it is for the next boot.
                _write_timer(system)
                write(system, noted)
            else:
                forget(system)
    except OSError as error:
        return f"which guests run can't be noted in {RAN}: {error.strerror}"
    return ""


def _write_timer(system: System) -> None:
    """Enabled as `systemctl enable` does it."""
    files = system.files
    files.need_folder(HOME)
    files.make_folder(_LINK.rpartition("/")[0])
    files.write(PROGRAM, boot_service.program("start_guests"), 0o700)
    files.write(_SERVICE, _SERVICE_TEXT.encode(), 0o644)
    files.write(_TIMER, _TIMER_TEXT.encode(), 0o644)
    files.write_link(_TIMER, _LINK)


def drop(system: System) -> None:
    """What was noted in this boot, which isn't restarted after all.

    :raises Failure: as of `lines`.
    """
    boot = boot_id(system)
    noted = lines(system)
    left = [line for line in noted if line.boot != boot]
    if not left:
        forget(system)  # a run that was cut short may have left the rest of it without a note
    elif left != noted:
        write(system, left)


def settle(system: System) -> None:
    """For a host that is given back. Nothing is started: what is still off is said, and the host sees to it.

    :raises Failure: as of `lines`.
    """
    is_owed = [
        line for line in lines(system) if guests.power_of(system, line.program, line.guest, 0) not in ("on", "gone")
    ]
    if is_owed:
        system.log.say(
            "note: guests that ran before the restart of this host are still off; it starts them by itself once no run "
            f"is at work (homelab-ran.timer): {' '.join(line.guest for line in is_owed)}"
        )
        return
    forget(system)


def forget(system: System) -> None:
    """The note first: what a cut leaves of the rest takes itself away. What runs of it meanwhile goes on to its end."""
    files = system.files
    files.remove(RAN)
    if any(files.exists(path) for path in (_LINK, _TIMER, _SERVICE, PROGRAM)):
        boot_service.remove(system, "homelab-ran", _LINK, _TIMER, _SERVICE, PROGRAM)
