"""A VM's starts, by Proxmox VE's tasks: whether any ended well; and who has shut it down."""

from __future__ import annotations

import time
from dataclasses import dataclass

from remote_scripts.shared import guest_tasks, kernel
from remote_scripts.tools.system import System


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`since`: in seconds since 1970; an earlier start doesn't count."""

    vmid: int
    since: int


@dataclass(frozen=True)
class Answer:
    """`started`: whether any of them ended well; `stopped_by`: whose the first shutdown or reboot after the last of
    them that failed, or else after the first, is, empty: there was none; `now`: the node's clock, in seconds since
    1970; `boot`: what tells the node's boot from every other.
    """

    started: bool
    stopped_by: str
    now: int
    boot: str


def read(system: System, wanted: Wanted) -> Answer:
    """:raises Failure: what is noted of tasks can't be read."""
    starts = guest_tasks.starts(system, "qm", wanted.vmid, wanted.since)
    well = any(start.well for start in starts)
    # Of a restart that was somebody's wish the second start has ended well; one that failed is nobody's.
    from_here = next((start for start in reversed(starts) if not start.well), starts[0] if starts else None)
    begun = from_here.start if from_here else wanted.since  # of that very second may be the one before the start
    # A reboot ends QEMU, too, before `qm cleanup` starts it again.
    shutdowns = guest_tasks.shutdowns(system, "qm", wanted.vmid, begun + 1, ("shutdown", "stop", "reboot"))
    stopped_by = next((task.user for task in shutdowns if task.well or not task.status), "")
    return Answer(well, stopped_by, int(time.time()), kernel.boot_id(system))
