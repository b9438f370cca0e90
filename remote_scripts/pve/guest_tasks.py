"""Proxmox VE's tasks, as far as several modules know them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remote_scripts.pve.api import NodeApi
from remote_scripts.pve.guest_kinds import Kind

TASKS = "/var/log/pve/tasks"
#: More than the API has.
MOST = 10000
#: What a person has open, and opens again.
CONSOLES = frozenset(("vncproxy", "vncshell", "spiceproxy", "spiceshell", "termproxy"))

#: The type of the task by which pve-guests.service shuts all guests down as its host goes down.
STOPALL = "stopall"


def is_well(status: str) -> bool:
    """Whether a task has ended well, by its exit status."""
    return status == "OK" or status.startswith("WARNINGS")


def is_failed_start(kind: Kind, task: Mapping[str, Any]) -> bool:
    """Whether it is a start of a guest that ended with an error."""
    return task["type"] in kind.starts and "endtime" in task and not is_well(task["status"])


def switching(api: NodeApi, kind: Kind, vmid: int) -> list[dict[str, Any]]:
    """What has switched a guest of this node on or off, or replaced it, the latest first; errors as of `NodeApi.get`.
    The kernel's clock (`pstart`) tells the order within one boot; between two boots none is known.
    """
    tasks = api.get("/tasks", vmid=vmid, source="all", limit=MOST)
    types = kind.starts + kind.reboots + kind.stops + kind.replaces
    # One that ends just now is there twice, as it runs and as it ended, in this order.
    own = {task["upid"]: task for task in tasks if task["type"] in types}
    return sorted(own.values(), key=lambda task: task["pstart"], reverse=True)


def restarts(api: NodeApi) -> list[dict[str, Any]]:
    """The tasks by which this node has shut all its guests down (STOPALL), or started them, in the log's order, the
    latest first; errors as of `NodeApi.get`. A person may begin both, too (Bulk Shutdown, Bulk Start).
    """
    tasks = api.get("/tasks", source="all", limit=MOST)
    return [task for task in tasks if task["type"] in (STOPALL, "startall")]
