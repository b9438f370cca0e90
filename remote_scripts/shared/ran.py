"""The guests that ran before a restart of this program's (lib/ran.sh): what is noted of them, and forgotten.

/var/lib/homelab/ran has a line for each: `qm 103 SECONDS BOOT`, or `pct 901 …`. A line goes once nothing is owed any
more.
"""

from __future__ import annotations

from remote_scripts.shared import guests
from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System

RAN = f"{HOME}/ran"
_UNITS = "/etc/systemd/system"
_LINK = f"{_UNITS}/timers.target.wants/homelab-ran.timer"
_TIMER = f"{_UNITS}/homelab-ran.timer"


def settle(system: System) -> None:
    """For whoever gives the host back. Nothing is started: who is still off then is said, and the host sees to it.

    :raises OSError: the note can't be read.
    """
    if not system.files.exists(RAN):
        return
    left = []
    for line in system.files.at(RAN).read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        program, _, rest = line.partition(" ")
        guest = rest.partition(" ")[0]
        if guests.power_of(system, program, guest, 0) not in ("on", "gone"):
            left.append(guest)
    if left:
        system.log.say(
            "note: guests that ran before the restart of this host are still off; it starts them by itself once no run "
            f"is at work (homelab-ran.timer): {' '.join(left)}"
        )
        return
    forget(system)


def forget(system: System) -> None:
    """The note first: what a cut leaves of the rest takes itself away. What runs of it meanwhile goes on to its end."""
    files = system.files
    if not any(files.exists(path) for path in (RAN, f"{RAN}-program", _LINK, _TIMER)):
        return
    files.remove(RAN)
    system.run.ask("systemctl", "stop", "homelab-ran.timer", seconds=60)  # it isn't started in the boot that noted it
    files.remove(_LINK, _TIMER, f"{_UNITS}/homelab-ran.service", f"{RAN}-program")
    if system.run.ask("systemctl", "daemon-reload", seconds=60).status != 0:
        system.log.say("systemctl daemon-reload failed: homelab-ran.timer is known until the next boot")
