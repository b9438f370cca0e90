"""The end of an update of NVIDIA's driver that had to wait for a boot: the new one was seen at work (`apply`), and what
was kept of the driver before goes; or the old one comes back (`revert`). Where no update waits, these change nothing.
"""

from __future__ import annotations

from remote_scripts.apt.apt import Apt
from remote_scripts.both.driver_update import Ended, Wanted
from remote_scripts.notes.handover import need_rest
from remote_scripts.nvidia import driver
from remote_scripts.nvidia.driver_update import Update
from remote_scripts.tools.system import System, changes


@changes
def apply(system: System, wanted: Wanted) -> Ended:
    """The new driver stays.

    :raises Failure: apt can't take away what was for the old one.
    """
    apt, update = _parts(system, wanted)
    if update.kept.phase == "tried":
        # Only a system with a boot of its own comes here, which has what is recommended, too.
        apt.tidy(update.kept.wanted, recommends=True)
    if update.kept.phase in ("", "tried"):  # without one there may be litter of a run that was cut short
        update.close()
    return Ended()


@changes
def revert(system: System, wanted: Wanted) -> Ended:
    """The old driver is put back.

    :raises Failure: it can't be; the next run goes on with it.
    """
    _, update = _parts(system, wanted)
    need_rest(system)
    kept = update.kept
    if not kept.phase:
        update.close()  # what a run that was cut short has left
    if kept.phase not in ("tried", "back"):
        return Ended()
    # A run before this one, which was cut short, may have put libraries back already.
    old, new = kept.driver.version, kept.new or driver.library_version(system)
    return Ended(old, update.back(new))


def _parts(system: System, wanted: Wanted) -> tuple[Apt, Update]:
    apt = Apt(system, wanted.software, driver.LAYER, "NVIDIA's driver")
    return apt, Update(apt, wanted.target)
