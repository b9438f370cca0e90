"""The guests that ran before a restart of this program's run again: by an `up` once the boot is confirmed, or by the
host's own timer.

What `up` is to start itself, or wants off, is left to it. /var/lib/homelab/ran and homelab-ran.{service,timer} go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from remote_scripts.shared import guest_starts
from remote_scripts.tools.system import System

#: For so long Proxmox VE, which starts its own guests first, is waited for, in seconds.
FIRST_SECONDS = 300
_OTHER_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Ids of guests: `later`: the run that asks starts them itself; `unwanted`: it wants them off."""

    later: tuple[int, ...] = ()
    unwanted: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
    """In words: who runs again; who stays off, and why; who is to be started later."""

    started: list[str]
    off: list[str]
    later: list[str]


def apply(system: System, wanted: Wanted) -> Answer:
    """Starts them, one after the other.

    :raises Failure: what is noted can't be read.
    """
    later, unwanted = ({*map(str, ids)} for ids in (wanted.later, wanted.unwanted))
    for _ in system.work.tries(FIRST_SECONDS, "waiting until Proxmox VE has started its guests"):
        starts = guest_starts.start(system, _OTHER_SECONDS, later, unwanted)
        if starts:
            for text in starts.waits:
                system.log.say(f"note: {text}; this host goes on trying (homelab-ran.timer)")
            return Answer(starts.started, starts.off, starts.owed)
    system.log.say(
        "note: guests that ran before the restart aren't started yet: Proxmox VE hasn't started its own; this host "
        "goes on trying (homelab-ran.timer)"
    )
    return Answer([], [], [])


def program(system: System, _arguments: Sequence[str] = ()) -> None:
    """What the host's own timer starts.

    :raises Failure: what is noted can't be read.
    """
    guest_starts.start_alone(system)
