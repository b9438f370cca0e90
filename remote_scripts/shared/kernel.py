"""The kernel that runs."""

from __future__ import annotations

from remote_scripts.tools.system import System


def running(system: System) -> str:
    """Its release, as `uname -r` says it.

    :raises OSError: it can't be read.
    """
    return system.files.at("/proc/sys/kernel/osrelease").read_text(encoding="ascii").strip()
