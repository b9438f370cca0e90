"""That a step was carried out on a system is known from there: a system that was reinstalled, or went back to a
snapshot, tells of none. /var/lib/homelab/steps/STEP has the name under which the settings have the system.
"""

from __future__ import annotations

from remote_scripts.tools.files import HOME
from remote_scripts.tools.system import System

_STEPS = f"{HOME}/steps"


def note(system: System, step: str, name: str) -> None:
    """Notes that a step is carried out.

    :param name: the system's place in the settings.
    """
    system.files.note(f"{_STEPS}/{step}", f"{name}\n".encode())


def forget(system: System, step: str) -> None:
    """The step was undone."""
    system.files.remove(f"{_STEPS}/{step}")


def is_anothers(system: System, step: str, name: str) -> bool:
    """Whether a step was last carried out under another name of the settings: who gives a system a new name there gets
    the step under the new one first, and its undoing under the old one then. By that time what is there is the new
    one's.

    :raises OSError: its note can't be read.
    """
    by = (system.files.need(f"{_STEPS}/{step}") or b"").decode("utf-8", "replace").strip("\n")
    if not by or by == name:
        return False
    system.log.say(f"note: {by} has it by now: nothing is taken back under the name {name}")
    return True
