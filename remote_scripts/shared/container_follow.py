"""The lines of containers follow the nodes of their cards, one container after the other: what keeps one from being
mended is said, and keeps no other.
"""

from __future__ import annotations

import time

from remote_scripts.shared import container_lines, guests, pmxcfs
from remote_scripts.shared.container_change import ConfigChange, QuorumFailure
from remote_scripts.shared.container_notes import Notes, noted_containers
from remote_scripts.shared.container_power import Power, Shutdown
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

#: For the cards' drivers at a boot, and for a cluster's quorum, in seconds from the beginning.
CARD_SECONDS, QUORUM_SECONDS = 20.0, 60.0
#: Of all containers together: below the time at which systemd ends the service, maybe in the middle of a change.
ALL_SECONDS = 240.0
_ONE_SECONDS = 120.0
_LOCK_SECONDS = 20.0
_LOOK_SECONDS = 1.0


def follow_containers(system: System) -> None:
    """While the host runs, for containers that are off, and for who has this host's lock: a card that comes back from a
    VM may have another number. A container that runs has what it was started with.
    """
    for ctid in _containers(system):
        power = guests.power_of(system, "pct", str(ctid))
        if power == "unknown":
            system.log.say(
                f"container {ctid}: whether it runs is not known, so that its cards' nodes were not looked after"
            )
        elif power == "off" and (failure := _mended(system, ctid, locked=False)):
            system.log.say(_message(system, ctid, failure))


def follow_at_boot(system: System) -> None:
    """Before the host's guests start; waits for the drivers of cards first. It raises nothing."""
    began = time.monotonic()
    ctids = _containers(system)
    while not all(_are_there(system, ctid) for ctid in ctids) and time.monotonic() - began < CARD_SECONDS:
        time.sleep(_LOOK_SECONDS)
    system.work.lock_seconds = _LOCK_SECONDS
    for ctid in ctids:
        # Each for itself: what keeps one from being mended keeps no other.
        message = f"container {ctid}: there was no time left to look after its cards' nodes"
        while (left := began + ALL_SECONDS - time.monotonic()) > 0:
            system.work.ends = time.monotonic() + min(left, _ONE_SECONDS)
            failure = _mended(system, ctid, locked=True)
            message = _message(system, ctid, failure) if failure else ""
            if not isinstance(failure, QuorumFailure) or time.monotonic() - began >= QUORUM_SECONDS:
                break
            time.sleep(2 * _LOOK_SECONDS)
        if message:
            system.log.say(message)


def _containers(system: System) -> list[int]:
    """Those that are here and were given nodes."""
    try:
        here = pmxcfs.names(system, pmxcfs.PVE_LXC)
    except Failure as failure:
        system.log.say(system.log.message(failure))
        return []
    noted = (ctid for ctid in noted_containers(system) if f"{ctid}.conf" in here)
    return [ctid for ctid in noted if _has_nodes(Notes(system, ctid))]


def _has_nodes(notes: Notes) -> bool:
    try:
        return bool(notes.read().given.nodes)
    except Failure:  # it is said when it is mended
        return True


def _are_there(system: System, ctid: int) -> bool:
    try:
        return container_lines.are_there(system, Notes(system, ctid))
    except (Failure, OSError):
        return True


def _mended(system: System, ctid: int, *, locked: bool) -> Exception | None:
    """Mends one container; what keeps it from being mended, if anything does.

    :param locked: takes the host's lock for it.
    """
    try:
        if locked:
            system.changing(lambda: _mend(system, ctid))
        else:
            _mend(system, ctid)
    except Exception as error:
        return error
    return None


def _message(system: System, ctid: int, error: Exception) -> str:
    message = system.log.message(system.failure_of(error))
    return message if isinstance(error, Failure) else f"container {ctid}: {message}"


def _mend(system: System, ctid: int) -> None:
    power = Power(system, ctid, Shutdown())
    config = ConfigChange(system, ctid, power, None)
    # It has what its configuration says when it starts.
    if config.notes.read().restart is not None and not power.is_up():
        config.mark_in_force()
    change = config.planned()
    if change.absent:
        missing = Failure(
            f"the nodes of container {ctid}'s cards",
            f"not there after {CARD_SECONDS:g} s: {' '.join(change.absent)}",
            "it may not start, or start without them",
            "see `dmesg | grep -iE 'drm|i915|amdgpu'` on the host",
        )
        system.log.say(system.log.message(missing))
    if change.is_any:
        config.apply()
        system.log.say(
            f"container {ctid}: its cards' nodes have other names or numbers since this boot, and its configuration "
            "has these now"
        )
