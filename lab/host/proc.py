"""Processes that a host has and this machine hasn't: entries in the lab's /proc for guests, and for programs that hold a card.

Such an entry is a folder, /proc/PID, with `comm`, `cmdline`, `cgroup`, `status`, `maps`, `fd` and `task/PID`. It can be looked at, and no signal
reaches it: a pid here is another process's on this machine, or nobody's.
"""

from __future__ import annotations

from .state import HostState


def put(host: HostState, pid: int, comm: str, cmdline: str, cgroup: str) -> None:
    """Show a process, in place of what was there."""
    remove(host, pid)
    base = f"/proc/{pid}"
    host.write(f"{base}/comm", f"{comm[:15]}\n")
    host.write(f"{base}/cmdline", cmdline.replace(" ", "\0") + "\0")
    host.write(f"{base}/cgroup", f"0::{cgroup}\n")
    host.write(f"{base}/status", f"Name:\t{comm[:15]}\nState:\tS (sleeping)\nPid:\t{pid}\nPPid:\t1\nUid:\t0\t0\t0\t0\n")
    host.write(f"{base}/stat", f"{pid} ({comm[:15]}) S 1 {pid} {pid} 0\n")
    host.write(f"{base}/maps", "")
    host.rooted(f"{base}/fd").mkdir()
    # Of its only thread: the same files.
    host.rooted(f"{base}/task").mkdir()
    host.rooted(f"{base}/task/{pid}").symlink_to("..")


def remove(host: HostState, pid: int) -> None:
    """The process has ended."""
    host.remove_tree(f"/proc/{pid}")
