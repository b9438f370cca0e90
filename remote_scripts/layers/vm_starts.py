"""A VM's starts, by Proxmox VE's tasks: what the log of the last one says of its cards, and whether any ended well; and
who has shut it down.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from remote_scripts.shared import guest_tasks, kernel, notes
from remote_scripts.tools.system import System
from remote_scripts.tools.text import as_text

_OF_CARDS = re.compile(r"failed to reset PCI device|stuck in D3")
_LOG_BYTES = 4000
_MOST_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`since`: in seconds since 1970; an earlier start doesn't count."""

    vmid: int
    since: int


@dataclass(frozen=True)
class Answer:
    """`task`: the last start's UPID, empty: there is none that has ended; `log`: its lines of a reset that failed and
    of a card that doesn't wake up; `started`: whether any of them ended well; `stopped_by`: whose the first shutdown
    or reboot after the last of them that failed, or else after the first, is, empty: there was none; `now`: the node's
    clock, in seconds since 1970; `boot`: what tells the node's boot from every other.
    """

    task: str
    log: str
    started: bool
    stopped_by: str
    now: int
    boot: str


def read(system: System, wanted: Wanted) -> Answer:
    """:raises Failure: what is noted of tasks can't be read."""
    starts = guest_tasks.starts(system, "qm", wanted.vmid, wanted.since)
    log = _of_cards(system, starts[-1].upid) if starts else ""
    well = any(start.well for start in starts)
    # Of a restart that was somebody's wish the second start has ended well; one that failed is nobody's.
    from_here = next((start for start in reversed(starts) if not start.well), starts[0] if starts else None)
    begun = from_here.start if from_here else wanted.since  # of that very second may be the one before the start
    # A reboot ends QEMU, too, before `qm cleanup` starts it again.
    shutdowns = guest_tasks.shutdowns(system, "qm", wanted.vmid, begun + 1, ("shutdown", "stop", "reboot"))
    stopped_by = next((task.user for task in shutdowns if task.well or not task.status), "")
    return Answer(starts[-1].upid if starts else "", log, well, stopped_by, int(time.time()), kernel.boot_id(system))


def _of_cards(system: System, upid: str) -> str:
    """A log that was cleared away says nothing."""
    wanted = "to know what the VM's last start says of its cards"
    why = "a card that could not be reset, or doesn't wake up, would go unnoticed"
    content = notes.need(system, guest_tasks.log_of(upid), wanted, why, _MOST_BYTES)
    lines = (line for line in as_text(content, _MOST_BYTES).split("\n") if _OF_CARDS.search(line))
    return "\n".join(lines)[:_LOG_BYTES]
