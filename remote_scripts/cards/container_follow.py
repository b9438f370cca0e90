"""The lines of containers follow the nodes of their cards, one container after the other: what keeps one from being
mended is said, and keeps no other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace

from remote_scripts.cards import host_nodes
from remote_scripts.containers.card_nodes import renumbered
from remote_scripts.containers.container_text import Decided, decided, edited, own_options
from remote_scripts.guests.container import write_text
from remote_scripts.notes import guest_notes
from remote_scripts.notes.container_note import Cards, ContainerNote
from remote_scripts.notes.guest_note import is_another
from remote_scripts.pve import guests, pmxcfs
from remote_scripts.pve.container_conf import ConfText, conf_text, options_of
from remote_scripts.pve.guest_kinds import CONTAINER
from remote_scripts.pve.properties import differing
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System

#: For the cards' drivers at a boot, and for a cluster's quorum, in seconds from the beginning.
CARD_SECONDS, QUORUM_SECONDS = 20.0, 60.0
# Of one container: what systemd ends after all (layers/card_nodes.py) the next boot makes good.
_ONE_SECONDS = 120.0
_LOCK_SECONDS = 20.0


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
        elif power == "off" and (failure := _mended(system, ctid, lambda work: work())):
            system.log.say(_message(system, ctid, failure))


def follow_at_boot(system: System) -> None:
    """Before the host's guests start; waits for the drivers of cards first. It raises nothing."""
    began, ctids = time.monotonic(), _containers(system)
    for _ in system.work.tries(CARD_SECONDS, "waiting for the nodes of containers' cards"):
        if all(_are_there(system, ctid) for ctid in ctids):
            break
    system.work.lock_seconds = _LOCK_SECONDS
    for ctid in ctids:
        system.work.ends = time.monotonic() + _ONE_SECONDS
        for _ in system.work.tries(began + QUORUM_SECONDS - time.monotonic(), "waiting for the cluster's quorum"):
            failure = _mended(system, ctid, system.changing)
            if not _lacks_quorum(failure):
                break
        if failure:
            system.log.say(_message(system, ctid, failure))


def _containers(system: System) -> list[int]:
    """Those that are here and of which something is noted."""
    try:
        here = system.files.need_names(pmxcfs.PVE_LXC)
    except Failure as failure:
        system.log.say(system.log.message(failure))
        return []
    return [ctid for ctid in guest_notes.noted(system, CONTAINER) if f"{ctid}.conf" in here]


def _are_there(system: System, ctid: int) -> bool:
    """Whether as many nodes are there as it was given; what can't be read is said when it is mended."""
    with suppress(Failure, OSError):
        _, note, decided = _decided(system, ctid)
        return len(decided.lines.nodes) >= len(note.given.nodes)
    return True


def _mended(system: System, ctid: int, run: Callable[[Callable[[], None]], object]) -> Exception | None:
    """Mends one container; what keeps it from being mended, if anything does.

    :param run: does it, under the host's lock where this process hasn't that yet.
    """
    try:
        run(lambda: follow(system, ctid))
    except Exception as error:
        return error
    return None


def _lacks_quorum(failure: Exception | None) -> bool:
    """Whether /etc/pve can only be read."""
    return isinstance(getattr(failure, "__cause__", None), PermissionError)


def _message(system: System, ctid: int, error: Exception) -> str:
    message = system.log.message(system.failure_of(error))
    return message if isinstance(error, Failure) else f"container {ctid}: {message}"


def _decided(system: System, ctid: int) -> tuple[ConfText, ContainerNote, Decided]:
    """By the cards that it was given."""
    conf = conf_text(system.files.need_text(f"{pmxcfs.PVE_LXC}/{ctid}.conf"))
    note = guest_notes.of_container(system, ctid)
    cards = note.given.cards or Cards()
    there = host_nodes.of(system, cards)
    return conf, note, decided(there, conf, note, renumbered(there, cards), note.given.groups)


def follow(system: System, ctid: int) -> None:
    """Gives a container the lines for its cards anew where one of their nodes has moved. It asks no API: at a boot
    pvedaemon isn't there yet.

    :raises Failure: it can't be read or written.
    """
    conf, note, new = _decided(system, ctid)
    config, now, nodes = options_of(conf), new.lines.nodes, note.given.nodes
    own = own_options(config, note)
    if not own or is_another(note, config):  # it was restored, or another container has the number now
        return
    if now == nodes:  # what its owner has changed stays
        return
    options = new.options
    if len(now) < len(nodes):
        system.log.say(system.log.message(_absent(ctid, now, nodes)))
        # A line whose node isn't there stays, and so do all rules: the container isn't to start without its card.
        paths = {key: f"{key} {value}".split()[1].partition(",")[0] for key, value in own.items()}
        late = {key: config[key] for key, path in paths.items() if path[0] != "/" or not system.files.exists(path)}
        options = {**options, **late}
    change = differing({**new.target, **options}, config)
    if not change:
        return
    # Nothing of this is ever taken back, and no restart is wanted for it.
    begun = replace(note.of_change(config, {}, options, change, note.owner), before=note.before)
    guest_notes.write(system, CONTAINER, ctid, begun)
    wanted = f"container {ctid} given its cards' nodes as they are now"
    write_text(system, ctid, edited(conf.text, change), conf.digest, wanted)
    given = replace(note.given, nodes=(*now, *[""] * (len(nodes) - len(now))))
    done = replace(begun.after_change(options), before=note.before, given=given)
    # A run that was killed before the boot goes on from what it has noted.
    guest_notes.write(system, CONTAINER, ctid, done)
    system.log.say(
        f"container {ctid}: its cards' nodes have other names or numbers since this boot, and its configuration has "
        "these now"
    )


def _absent(ctid: int, now: Collection[str], before: Collection[str]) -> Failure:
    return Failure(
        f"all nodes of container {ctid}'s cards",
        f"after {CARD_SECONDS:g} s {len(now)} of {len(before)} are there: {' '.join(now)}",
        "it may not start, or start without them",
        "see `dmesg | grep -iE 'drm|i915|amdgpu'` on the host",
    )
