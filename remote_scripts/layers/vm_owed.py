"""Whether a VM that this program has shut down to run again still is to (shared/guest_tasks.py)."""

from __future__ import annotations

from dataclasses import dataclass

from remote_scripts.shared import guest_tasks
from remote_scripts.tools.system import System


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`at`: seconds since 1970, when it was noted that it ran; `boot`: the id of the node's boot then; `tasks`: UPIDs
    of this program's that have shut it down since; `off`: whether it was off already by then.
    """

    vmid: int
    at: int
    boot: str
    tasks: tuple[str, ...]
    off: bool


@dataclass(frozen=True)
class Answer:
    """`why`: for which a VM that is off isn't to run again; empty: it is to."""

    why: str


def read(system: System, wanted: Wanted) -> Answer:
    """By the node's tasks."""
    noted, tasks = (wanted.at, wanted.boot), wanted.tasks
    why = guest_tasks.why_stays_off(system, "qm", wanted.vmid, *noted, lambda task: task.upid in tasks, off=wanted.off)
    return Answer(why)
