"""A guest's starts and shutdowns on this node, by Proxmox VE's tasks; and whether one that this program has shut down
to run again still is to.

A line of /var/log/pve/tasks/index is `UPID ENDTIME STATUS`, the latest last; one of `active` is `UPID 0|1 [ENDTIME
STATUS]`, and one that has ended may be there as running for some seconds.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from remote_scripts.shared import kernel, notes
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

TASKS = "/var/log/pve/tasks"
#: How long it counts that a guest is to run again, in seconds.
COUNTS_SECONDS = 3600
#: More than the API has.
MOST = 10000
_LINES = 2000
_BYTES = 16 << 20
#: What a person has open, and opens again.
CONSOLES = frozenset(("vncproxy", "vncshell", "spiceproxy", "spiceshell", "termproxy"))
# `UPID:NODE:PID:PSTART:START:TYPE:ID:USER:`, of which numbers are hexadecimal: PSTART is as in /proc/PID/stat, START
# seconds since 1970. A line that a power cut left short is of a task all the same.
_TASK = re.compile(
    r"(?P<upid>UPID:[^: ]*:(?P<pid>[0-9A-Fa-f]*):(?P<pstart>[0-9A-Fa-f]*):(?P<start>[0-9A-Fa-f]{8})"
    r":(?P<kind>[^: ]*):(?P<guest>[^: ]*):(?P<user>[^: ]*)\S*)"
    r"(?:(?: [01])? (?P<end>[0-9A-F]{8})(?: +(?P<status>.*\S))?)?"
)

Kind = Literal["qm", "vz"]


@dataclass(frozen=True)
class Task:
    """A task of Proxmox VE's. `start`: in seconds since 1970; `status`: how it has ended; empty: it runs still, or that
    isn't said.
    """

    upid: str
    start: int
    kind: str
    guest: str
    user: str
    status: str

    @property
    def well(self) -> bool:
        """Whether it has ended well."""
        return is_well(self.status)


def is_well(status: str) -> bool:
    """Whether a task has ended well, by its exit status."""
    return status == "OK" or status.startswith("WARNINGS")


def starts(system: System, kind: Kind, guest: int, since: int) -> list[Task]:
    """Those that have ended since then, the latest last.

    :param kind: qm: a VM; vz: a container.
    :param since: in seconds since 1970.
    :raises Failure: the log of tasks can't be read.
    """
    recent = tasks(system, "index.1", "index")
    return [task for task in recent if (task.kind, task.guest) == (f"{kind}start", str(guest)) and task.start >= since]


def was_started(system: System, kind: Kind, guest: int, since: int) -> bool:
    """Whether a start since then has ended well; arguments and errors as of `starts`."""
    return any(start.well for start in starts(system, kind, guest, since))


def why_stays_off(
    system: System, kind: Kind, guest: int, at: int, boot: str, is_own: Callable[[Task], bool], *, off: bool
) -> str:
    """Of a guest that is off: why it isn't to run again. A user who has switched it off since wants it off, and what
    isn't certain starts nothing. Empty: it is to run.

    :param at: seconds since 1970, when it was noted that it ran.
    :param boot: of the node, then.
    :param is_own: whether a task that shuts it down is this program's: the owner may be root@pam, too.
    :param off: it was off by then already, else it was shut down next.
    """
    try:
        if was_started(system, kind, guest, at + 1):  # a start of that very second may be the one before
            return "it was started since"
        if not boot or boot != kernel.boot_id(system):
            return "the node has restarted since"
        since = [] if off else shutdowns(system, kind, guest, at)
        if abs(int(time.time()) - max([at, *(task.start for task in since if is_own(task))])) >= COUNTS_SECONDS:
            return "that is more than an hour ago"
        return "" if off else _who_shut(since, is_own)
    except Failure as failure:
        return f"who has switched it on or off since isn't known ({failure.found})"


def _who_shut(since: list[Task], is_own: Callable[[Task], bool]) -> str:
    """Whose shutdowns there were since. One that HA carries out is root's task, after the request to HA. One of ours
    that failed has switched nothing off.
    """
    was_homelab = by_ha = False
    for task in since:
        if is_own(task):
            if task.well or not task.status:
                was_homelab = True
                by_ha = by_ha or task.kind == "hastop"
        elif not by_ha or task.user != "root@pam" or task.kind == "hastop":
            return f"{task.user} has switched it off since, and it isn't certain that this program did"
    return "" if was_homelab else "this program hasn't switched it off since"


def shutdowns(system: System, kind: Kind, guest: int, since: int) -> list[Task]:
    """Those that began since then, also of HA, the latest last; arguments and errors as of `starts`."""
    kinds = ("hastop", f"{kind}shutdown", f"{kind}stop")
    by_upid: dict[str, Task] = {}
    for task in tasks(system, "index.1", "index", "active"):
        is_about = task.guest == str(guest) and task.kind in kinds and task.start >= since
        # One that has ended may be in `active` still, as running.
        if is_about and (task.status or task.upid not in by_upid):
            by_upid[task.upid] = task
    return sorted(by_upid.values(), key=lambda task: (task.start, task.kind, task.user))


def tasks(system: System, *names: str) -> list[Task]:
    """Those of the last of these files' lines.

    :raises Failure: one that is there can't be read.
    """
    lines: list[str] = []
    for name in names:
        wanted = "to know who has started and shut down guests of this node"
        why = "a guest that somebody switched off must stay off"
        content = notes.need(system, f"{TASKS}/{name}", wanted, why, _BYTES)
        lines += content.decode("utf-8", "replace").splitlines()
    matches = map(_TASK.match, lines[-_LINES:])
    return [
        Task(
            task["upid"],
            int(task["start"], 16),
            task["kind"],
            task["guest"],
            task["user"],
            task["status"] or "",
        )
        for task in matches
        if task
    ]
