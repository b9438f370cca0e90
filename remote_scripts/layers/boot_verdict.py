"""What the timer of a boot on trial (files/rollback.sh) asks the host itself: whether this boot is in order. One that
nobody waits for and that is, is confirmed. Changes what boot/trial.py says.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from remote_scripts.boot import route, trial
from remote_scripts.notes import owed
from remote_scripts.tools.errors import Failure, in_words
from remote_scripts.tools.kernel import need_boot_id
from remote_scripts.tools.system import System

#: The owner's own checks: all that are executable there must succeed.
_CHECKS = "/etc/homelab/healthy.d"
_CHECK_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`seconds`: so long after the boot's start it is asked. `lock_seconds`: for so long another run is waited for,
    which may hang.
    """

    # By another name than an earlier agent's, which knows of no trial: so it gives no answer.
    seconds: int
    lock_seconds: int = 60


def apply(system: System, wanted: Wanted) -> str:
    """Whether this boot goes on: `stay`, or `give back: REASON`.

    :raises Failure: it can't be told, and so is to be given back.
    :raises OSError: so it is.
    """
    state = trial.state(system)
    if state in ("armed", "ending"):
        return "stay"
    if state == "running":
        is_well, reason = _verdict(system, wanted.seconds, trial.note(system))
        if not is_well:
            _note_running(system)
            return f"give back: {reason}".replace('"', "").replace("\\", "")
        with suppress(OSError):  # a disk that takes nothing makes no boot a bad one
            system.files.write(trial.JUDGED, f"boot {need_boot_id(system)} {reason}".encode(), 0o600)
        if not trial.confirm(system):
            system.files.remove(trial.JUDGED)
    trial.settle_if_free(system, wanted.lock_seconds)
    return "stay"


def _note_running(system: System) -> None:
    """Guests that come back are started again by the next boot, where its program is."""
    try:
        if system.files.exists(owed.PROGRAM):
            owed.note_running(system)
    except (Failure, OSError) as error:
        system.log.say(f"guests that run now are not noted: {in_words(error)}")


def _verdict(system: System, after: int, noted: Mapping[str, str]) -> tuple[bool, str]:
    if _is_awaited(noted):
        return False, f"was not confirmed within {after} s of its start"
    is_well, answer = False, ""
    for _ in system.work.tries(after / 10, "waiting until this host is reached as before"):
        is_well, answer = _reached(system, noted)
        if is_well:
            break
    if is_well and (failed := _failed_checks(system)):
        is_well, answer = False, f"{failed} of its owner's checks did not succeed"
    return is_well, f"was waited for by no `up`, and judged by this host itself {after} s after its start: {answer}"


def _is_awaited(noted: Mapping[str, str]) -> bool:
    """Whether an `up` may still wait for this boot. By a clock that reads less than when the wait began, and so is
    behind, as in local time before the network has set it, one would wait for hours. An earlier version's trial doesn't
    say when it began.
    """
    until, awaited = noted.get("until", ""), noted.get("awaited", "")
    if not until.isdecimal():
        return False
    began = int(until) - int(awaited) if awaited.isdecimal() else 0
    return began <= time.time() < int(until)


def _failed_checks(system: System) -> str:
    """Those of the owner's checks that fail, or hang."""
    paths = [f"{_CHECKS}/{name}" for name in system.files.names(_CHECKS)]
    programs = [path for path in paths if system.files.is_file(path) and os.access(system.files.at(path), os.X_OK)]
    return ", ".join(
        path for path in programs if system.run.do(system.files.name(path), seconds=_CHECK_SECONDS).status != 0
    )


def _reached(system: System, before: Mapping[str, str]) -> tuple[bool, str]:
    """How this host is reached, or what of it doesn't hold: what held when the trial was armed has to."""
    address, port, gateway = (before.get(key, "") for key in ("address", "port", "gateway"))
    if not address:
        return False, "it is not known over which address this host is reached"
    if not (interface := route.interface_of(system, address)):
        return False, f"no interface that is up has {address}, over which it was configured"
    if port and not route.listens(system, port):
        return False, f"nothing listens on port {port}, on which sshd did when it was configured"
    answers = route.answering_gateway(system, address) if gateway else ""
    if gateway and not answers:
        return False, f"no default gateway answers, and {gateway} did when it was configured"
    asked = f", its gateway {answers} answers" if gateway else ", its gateway did not answer when it was configured"
    heard = f", and sshd listens on port {port}" if port else ""
    return True, f"{interface} is up with {address}{asked}{heard}"
