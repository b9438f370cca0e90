"""Proxmox VE's tasks, as far as several modules know them."""

from __future__ import annotations

from typing import Any

from remote_scripts.pve.api import NodeApi
from remote_scripts.pve.guest_kinds import Kind

TASKS = "/var/log/pve/tasks"
#: More than the API has.
MOST = 10000
#: What a person has open, and opens again.
CONSOLES = frozenset(("vncproxy", "vncshell", "spiceproxy", "spiceshell", "termproxy"))


def is_well(status: str) -> bool:
    """Whether a task has ended well, by its exit status."""
    return status == "OK" or status.startswith("WARNINGS")


def switching(api: NodeApi, kind: Kind, vmid: int) -> list[dict[str, Any]]:
    """What has switched a guest of this node on or off, the latest first; errors as of `NodeApi.get`."""
    tasks = api.get("/tasks", vmid=vmid, source="all", limit=MOST)
    own = (task for task in tasks if task["type"] in kind.starts + kind.stops)
    return sorted(own, key=lambda task: (task["starttime"], task["pstart"]), reverse=True)
