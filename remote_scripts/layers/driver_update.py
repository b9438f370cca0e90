"""The end of an update of NVIDIA's driver that had to wait, for a boot or for a host's containers: the new one was seen
at work (`apply`), and what was kept of the driver before goes; or the old one comes back (`revert`). Where no update
waits, these change nothing.
"""

from __future__ import annotations

from remote_scripts.both.driver_update import Ended, Waiting, Wanted
from remote_scripts.shared import driver
from remote_scripts.shared.driver import FAMILY
from remote_scripts.shared.driver_update import VERSION_GIVEN_UP, Update
from remote_scripts.shared.guests import power_of
from remote_scripts.shared.handover import need_rest
from remote_scripts.shared.packages import Packages
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System, changes


def read(system: System, wanted: Wanted) -> Waiting:
    """How far it is; waits for another run that is at work.

    :raises Failure: whether a container runs isn't known.
    """
    system.work.take_lock()
    try:
        update = _update(system, wanted)
        powers = {ctid: power_of(system, "pct", str(ctid)) for ctid in wanted.containers}
        if "unknown" in powers.values():
            raise Failure(
                f"whether the containers {', '.join(map(str, powers))} run",
                "pct status gave no answer",
                "the driver is tried in those that run before the old one goes",
                "see `pct list` on the host; then run `pulumi up` again. A slow host gets longer with timeouts.step",
            )
        running = tuple(ctid for ctid, power in powers.items() if power == "on")
        kept = update.kept
        given_up = system.files.need_text(VERSION_GIVEN_UP).strip()
        return Waiting(kept.phase, kept.driver.version, driver.library_version(system), given_up, running)
    finally:
        system.work.release()


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
    # `trying`: of a container whose run was killed. (A host's own step goes on with that.)
    phases = ("tried", "back", "trying") if wanted.target == "lxc" else ("tried", "back")
    kept = update.kept
    if not kept.phase:
        update.close()
    if kept.phase not in phases or kept.lost:
        return Ended(now=_as_it_is(system, update) if wanted.target == "lxc" else "")
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
    # A container's update is its host's: that one is named as given up.
    if wanted.target != "lxc":
        files.note(VERSION_GIVEN_UP, f"{new}\n".encode())
    update.close()
    return Ended(old, restored)


def _as_it_is(system: System, update: Update) -> str:
    """What there is, in words, in a container that has put its libraries back by itself."""
    version = driver.library_version(system)
    if update.serves_cards():
        return f"its libraries are {version}; nvidia-smi answers"
    return f"its libraries are {version}; nvidia-smi says: {update.answer.text.rpartition(chr(10))[2]}"


def _update(system: System, wanted: Wanted) -> Update:
    packages = Packages(system, wanted.software, driver.LAYER, "NVIDIA's driver, put back", FAMILY)
    return Update(packages, wanted.target)
