"""Restarts the system that it runs on, a moment after it has answered. Changes nothing that lasts."""

from __future__ import annotations

from remote_scripts.both.nothing import Wanted
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import Changed
from remote_scripts.tools.restart import restart_soon
from remote_scripts.tools.system import System, changes


@changes
def apply(system: System, wanted: Wanted) -> Changed:
    """Once a step whose client was killed has come to its end: under the lock."""
    done = restart_soon(system)
    if done.status:
        raise Failure(
            "a reboot of this system",
            done.text or f"exit status {done.status} of systemd-run",
            "its running kernel can't use the installed driver",
            "reboot it by hand, then run `pulumi up` again",
        )
    return Changed(True)
