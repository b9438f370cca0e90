"""A guest's starts and shutdowns on this node, by Proxmox VE's tasks; and whether one that this program has shut down
to run again still is to.

A line of /var/log/pve/tasks/index is `UPID ENDTIME STATUS`, the latest last; one of `active` is `UPID 0|1 [ENDTIME
STATUS]`, and one that has ended may be there as running for some seconds.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Literal

from remote_scripts.shared import kernel, notes
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

TASKS = "/var/log/pve/tasks"
#: How long it counts that a guest is to run again, and how soon after it was noted a shutdown is this program's where
#: people may have the same user, in seconds.
COUNTS_SECONDS = 3600
PROMPT_SECONDS = 30
_LINES = 2000
_BYTES = 16 << 20
#: When a task began, in hexadecimal seconds since 1970.
START = re.compile(r"[0-9A-F]{8}")

Kind = Literal["qm", "vz"]


@dataclass(frozen=True)
class Start:
    """A guest's start that has ended. `upid`: its task."""

    upid: str
    well: bool


def starts(system: System, kind: Kind, guest: int, since: int) -> list[Start]:
    """Those since then, the latest last.

    :param kind: qm: a VM; vz: a container.
    :param since: in seconds since 1970.
    :raises Failure: the log of tasks can't be read.
    """
    found = []
    for line in lines(system, "index.1", "index"):
        words = line.split()
        parts = words[0].split(":") if words else []
        if len(parts) < 8 or parts[0] != "UPID" or parts[5:7] != [f"{kind}start", str(guest)]:
            continue
        if START.fullmatch(parts[4]) and int(parts[4], 16) >= since:
            status = words[2] if len(words) > 2 else ""
            found.append(Start(words[0], status == "OK" or status.startswith("WARNINGS")))
    return found


def was_started(system: System, kind: Kind, guest: int, since: int) -> bool:
    """Whether a start since then has ended well; arguments and errors as of `starts`."""
    return any(start.well for start in starts(system, kind, guest, since))


def why_off(system: System, kind: Kind, guest: int, at: int, boot: str, ours: str, *, off: bool) -> str:
    """Of a guest that is off: why it isn't to run again. Whoever has switched it off since wants it off, and what isn't
    certain starts nothing. Empty: it is to run.

    :param at: seconds since 1970, when it was noted that it ran.
    :param boot: of the node, then.
    :param ours: the user as which this program shuts it down.
    :param off: it was off by then already, else it was shut down next.
    """
    try:
        if was_started(system, kind, guest, at + 1):  # a start of that very second may be the one before
            return "it was started since"
        if not boot or boot != kernel.boot_id(system):
            return "the node has restarted since"
        if abs(int(time.time()) - at) >= COUNTS_SECONDS:
            return "that is more than an hour ago"
        return "" if off else _who_shut(system, kind, guest, at, ours)
    except Failure as failure:
        return f"who has switched it on or off since isn't known ({failure.found})"


def _who_shut(system: System, kind: Kind, guest: int, at: int, ours: str) -> str:
    """Whose shutdowns there were since. One that HA carries out is root's task, after the request to HA. One of ours
    that failed has switched nothing off. People may have the same user, but no token: theirs is what comes later, of
    ours each is noted anew.
    """
    is_ours = by_ha = False
    for start, task, user, went_well in _shutdowns(system, kind, guest):
        if not START.fullmatch(start) or int(start, 16) < at:
            continue
        if user == ours and ("!" in ours or int(start, 16) <= at + PROMPT_SECONDS):
            if went_well:
                is_ours = True
                by_ha = by_ha or task == "hastop"
        elif not by_ha or user != "root@pam":
            return f"someone else has switched it off since ({user})"
    return "" if is_ours else "it went off by itself, or from within"


def _shutdowns(system: System, kind: Kind, guest: int) -> list[tuple[str, str, str, bool]]:
    """Of each its start, type and user, and whether it ended well, or runs still."""
    ended: dict[tuple[str, str, str, str], str] = {}
    for line in lines(system, "index.1", "index", "active"):
        words = line.split(" ")
        parts = words[0].split(":")
        if len(parts) < 8 or parts[0] != "UPID" or parts[6] != str(guest):
            continue
        if parts[5] not in (f"{kind}shutdown", f"{kind}stop", "hastop"):
            continue
        # The second word is a time in `index`, and 0 or 1 in `active`.
        rest = words[2 if len(words) > 1 and len(words[1]) > 1 else 3 :]
        status = rest[0].partition(":")[0] if rest else ""
        task = (parts[4], parts[5], parts[7], parts[2])
        if status or task not in ended:
            ended[task] = status
    return sorted(
        (start, task, user, status in ("", "OK", "WARNINGS")) for (start, task, user, _), status in ended.items()
    )


def lines(system: System, *names: str, last: int = _LINES) -> list[str]:
    """The last of these files' lines.

    :param last: how many; 0: all.
    :raises Failure: one that is there can't be read.
    """
    lines: list[str] = []
    for name in names:
        wanted = "to know who has started and shut down guests of this node"
        content = notes.need(system, f"{TASKS}/{name}", wanted, "what somebody has switched off stays off", _BYTES)
        lines += content.decode("utf-8", "replace").splitlines()
    return lines[-last:]
