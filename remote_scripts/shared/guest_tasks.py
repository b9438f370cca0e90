"""Proxmox VE's tasks, as far as several modules know them."""

from __future__ import annotations

TASKS = "/var/log/pve/tasks"
#: More than the API has.
MOST = 10000
#: What a person has open, and opens again.
CONSOLES = frozenset(("vncproxy", "vncshell", "spiceproxy", "spiceshell", "termproxy"))


def is_well(status: str) -> bool:
    """Whether a task has ended well, by its exit status."""
    return status == "OK" or status.startswith("WARNINGS")
