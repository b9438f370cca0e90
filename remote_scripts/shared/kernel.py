"""The kernel that runs."""

from __future__ import annotations

import errno

from remote_scripts.tools.system import System

_RELEASE = "/proc/sys/kernel/osrelease"


def running(system: System) -> str:
    """Its release, as `uname -r` says it.

    :raises OSError: it can't be read.
    """
    found = system.files.line(_RELEASE) or system.run.ask("uname", "-r").text
    if not found:
        raise OSError(errno.EIO, "it can't be read", _RELEASE)
    return found
