"""The lines of containers follow the nodes of their cards, one container after the other: what keeps one from being
mended is said, and keeps no other.
"""

from __future__ import annotations

import time
from dataclasses import replace

from remote_scripts.guests.container import write_text
from remote_scripts.shared import container_lines, guest_notes, guests, pmxcfs
from remote_scripts.shared.container_conf import conf_text, options_of
from remote_scripts.shared.container_drift import noted
from remote_scripts.shared.container_lines import Change
from remote_scripts.shared.container_text import as_options, edited, own_lines
from remote_scripts.shared.guest_kinds import CONTAINER
from remote_scripts.shared.guest_note import is_another
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
            if not _lacks_quorum(failure) or time.monotonic() - began >= QUORUM_SECONDS:
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
    ctids = guest_notes.noted(system, CONTAINER)
    return [ctid for ctid in ctids if f"{ctid}.conf" in here and _has_nodes(system, ctid)]


def _has_nodes(system: System, ctid: int) -> bool:
    try:
        return bool(noted(system, ctid).given.nodes)
    except Failure:  # it is said when it is mended
        return True


def _are_there(system: System, ctid: int) -> bool:
    try:
        return container_lines.are_there(system, noted(system, ctid).given.nodes)
    except (Failure, OSError):
        return True


def _mended(system: System, ctid: int, *, locked: bool) -> Exception | None:
    """Mends one container; what keeps it from being mended, if anything does.

    :param locked: takes the host's lock for it.
    """
    try:
        if locked:
            system.changing(lambda: _tell(system, ctid, follow(system, ctid)))
        else:
            _tell(system, ctid, follow(system, ctid))
    except Exception as error:
        return error
    return None


def _lacks_quorum(failure: Exception | None) -> bool:
    """Whether /etc/pve can only be read."""
    return isinstance(getattr(failure, "__cause__", None), PermissionError)


def _message(system: System, ctid: int, error: Exception) -> str:
    message = system.log.message(system.failure_of(error))
    return message if isinstance(error, Failure) else f"container {ctid}: {message}"


def _tell(system: System, ctid: int, change: Change) -> None:
    if change.absent:
        missing = Failure(
            f"the nodes of container {ctid}'s cards",
            f"not there after {CARD_SECONDS:g} s: {' '.join(change.absent)}",
            "it may not start, or start without them",
            "see `dmesg | grep -iE 'drm|i915|amdgpu'` on the host",
        )
        system.log.say(system.log.message(missing))
    if change.is_any:
        system.log.say(
            f"container {ctid}: its cards' nodes have other names or numbers since this boot, and its configuration "
            "has these now"
        )


def follow(system: System, ctid: int) -> Change:
    """Writes a container's configuration anew where one of its nodes has moved; what was to change. It asks no API: at
    a boot pvedaemon isn't there yet.

    :raises Failure: it can't be read or written.
    """
    conf = conf_text(pmxcfs.text_of(system, f"{pmxcfs.PVE_LXC}/{ctid}.conf"))
    config = options_of(conf)
    note = noted(system, ctid)
    if is_another(note, config):
        return Change((), ())
    own = own_lines(conf, note)
    change = container_lines.follow(system, own, note.given.nodes)
    if not change.is_any:
        return change
    added = as_options(conf.text, own, change.add)
    gone: dict[str, str | None] = dict.fromkeys(change.drop)
    # What its owner has taken out is noted still, and stays out.
    options = {**{key: value for key, value in note.wanted.items() if key not in gone}, **added}
    begun = note.of_change(config, {}, options, {**gone, **added}, note.owner)
    nodes = tuple(dict.fromkeys([*note.given.nodes, *change.nodes]))
    # Nothing of this is ever taken back, and no restart is wanted for it.
    begun = replace(begun, given=replace(note.given, nodes=nodes), before=note.before)
    guest_notes.write(system, CONTAINER, ctid, begun)
    wanted = f"container {ctid} given its cards' nodes as they are now"
    write_text(system, ctid, edited(conf.text, {**gone, **added}), conf.digest, wanted)
    done = replace(begun.after_change(options, {}), before=note.before, given=replace(note.given, nodes=change.nodes))
    # A run that was killed before the boot goes on from what it has noted.
    guest_notes.write(system, CONTAINER, ctid, replace(done, shut_down_after=note.shut_down_after, stops=note.stops))
    return change
