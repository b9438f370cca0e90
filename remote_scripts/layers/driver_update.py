"""The end of an update of NVIDIA's driver that had to wait for a boot: the new one was seen at work (`apply`), and what
was kept of the driver before goes; or the old one comes back (`revert`). Where no update waits, these change nothing.
"""

from __future__ import annotations

from remote_scripts.both.driver_update import Ended, Wanted
from remote_scripts.shared import driver
from remote_scripts.shared.driver import FAMILY
from remote_scripts.shared.driver_update import VERSION_GIVEN_UP, Update
from remote_scripts.shared.handover import need_rest
from remote_scripts.shared.packages import Packages
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System, changes


@changes
def apply(system: System, wanted: Wanted) -> Ended:
    """The new driver stays."""
    update = _update(system, wanted)
    if update.kept.phase in ("", "tried"):  # without one there may be litter of a run that was cut short
        update.close()
    return Ended()


@changes
def revert(system: System, wanted: Wanted) -> Ended:
    """The old driver is put back.

    :raises Failure: it can't be; the next run goes on with it.
    """
    files, update = system.files, _update(system, wanted)
    need_rest(system)
    kept = update.kept
    if not kept.phase:
        update.close()
    if kept.phase not in ("tried", "back") or kept.lost:
        return Ended()
    # A run before this one, which was cut short, may have put libraries back already.
    old, new = kept.driver.version, kept.new or driver.library_version(system)
    update.note(phase="back", new=new)
    try:
        restored = update.restore()
    except (Failure, OSError) as error:
        failure = system.failure_of(error)
        raise failure.but(
            why=f"the update to {new} doesn't work, and the driver {old} could not be put back: {failure.why}",
            next=f"{failure.next}, then run `pulumi up --refresh`: it first goes on with putting {old} back",
        ) from error
    files.note(VERSION_GIVEN_UP, f"{new}\n".encode())
    update.close()
    return Ended(old, restored)


def _update(system: System, wanted: Wanted) -> Update:
    packages = Packages(system, wanted.software, driver.LAYER, "NVIDIA's driver, put back", FAMILY)
    return Update(packages, wanted.target)
