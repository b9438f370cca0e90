"""Restarts the system that it runs on, a moment after it has answered. Changes nothing that lasts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from remote_scripts.shared.restart import restart_soon
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System, changes


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Nothing is to be said."""


@dataclass(frozen=True)
class Answer:
    """`reboot`: it was asked for."""

    reboot: Literal["yes"] = "yes"


@changes
def apply(system: System, wanted: Wanted) -> Answer:
    """Once a step whose client was killed has come to its end: under the lock."""
    done = restart_soon(system)
    if done.status:
        raise Failure(
            "a reboot of this system",
            done.text or f"exit status {done.status} of systemd-run",
            "its running kernel can't use the installed driver",
            "reboot it by hand, then run `pulumi up` again",
        )
    return Answer()
