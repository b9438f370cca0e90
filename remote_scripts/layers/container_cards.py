"""The device nodes of cards that a container has, by dev[n] options or lxc.* lines, and in force: its configuration and
its restart are one step (guests/change.py).

Which lines are to come is decided here, by the nodes that there are now: their numbers change with each boot. What
others have given the container stays. `revert` gives it back what it had.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager

from remote_scripts.both.container_cards import Answer, Left, Wanted
from remote_scripts.cards import host_nodes
from remote_scripts.containers import container_groups
from remote_scripts.containers.card_nodes import nodes_of
from remote_scripts.containers.container_lines import Lines
from remote_scripts.containers.container_system import need_container
from remote_scripts.containers.container_text import decided
from remote_scripts.guests.change import bring, give_back, in_turns
from remote_scripts.guests.container import Container
from remote_scripts.notes import handover
from remote_scripts.notes.container_note import Cards, Given
from remote_scripts.notes.guest_note import refused_to_stack
from remote_scripts.pve.container_conf import conf_text
from remote_scripts.pve.guest_kinds import CONTAINER
from remote_scripts.tools.system import System


def apply(system: System, wanted: Wanted) -> Answer:
    """Brings the cards into force.

    :raises Failure: a node isn't there, the container can't be changed, or has cards from another stack; one of the
        host's cards is away; as of `bring`.
    """

    def change(guest: Container) -> Answer:
        if not guest.is_here:
            need_container(system, wanted.ctid)
        if refused := refused_to_stack(guest.note, CONTAINER, guest.vmid, wanted.terms.owner.rpartition("/")[0]):
            raise refused
        was_off = not guest.runs()
        lines = _brought(guest, wanted)
        if was_off and guest.runs() and _groups(guest, wanted.cards) != guest.given.groups:
            lines = _brought(guest, wanted)
        return _answer(guest, lines)

    with _beside_others(system, wanted.ctid):
        handover.need_rest(system)
        return in_turns(Container, system, wanted.ctid, change)


def revert(system: System, wanted: Wanted) -> Left:
    """Gives the container back what it had, as far as it still is as homelab has set it. It runs if it did, whatever
    the settings have said.

    :raises Failure: as of `bring`.
    """

    def back(guest: Container) -> Left:
        give_back(guest, wanted.terms, goes_away=wanted.goes_away)
        return Left(node=guest.node, is_here=guest.is_here, owner=guest.note.owner)

    with _beside_others(system, wanted.ctid):
        return in_turns(Container, system, wanted.ctid, back)


def _beside_others(system: System, ctid: int) -> AbstractContextManager[None]:
    """For a container's change, beside those of others. Meanwhile nothing changes this host, as a VM does that takes a
    card of it.
    """
    return system.work.alone("lock", system.work.lock_seconds, f"container {ctid} changed", shared=True)


def _brought(guest: Container, wanted: Wanted) -> Lines:
    """Brings it to the lines by which it has these cards; what it is to have is noted with them.

    :raises Failure: a node isn't there, or it can't have it; as of `bring`.
    """
    cards, there = wanted.cards, host_nodes.of(guest.system, wanted.cards)
    host_nodes.need(guest.system, guest.vmid, there, nodes_of(there, cards))
    groups = _groups(guest, cards)
    new = decided(there, conf_text(guest.text), guest.note, cards, groups)
    guest.given = Given(cards=cards, groups=groups, nodes=new.lines.nodes)
    bring(guest, new.options, wanted.terms)
    return new.lines


def _groups(guest: Container, cards: Cards) -> dict[str, int]:
    """The groups inside, where they count. One that is off says nothing: until it runs, its nodes are for everybody."""
    if cards.cards and cards.method == "device" and guest.runs():
        return container_groups.groups_of(guest.system, guest.vmid)
    return guest.note.given.groups


def _answer(guest: Container, lines: Lines) -> Answer:
    words = []
    for path, how in lines.provided.items():
        device = guest.system.files.device(path)
        words.append(f"{path} {how} {device.numbers}\n" if device else "")
    return Answer(
        digest=hashlib.sha256("".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:16],
        revision=guest.note.revision,
        devices={path: how.partition(" ")[0] for path, how in lines.provided.items()},
        state="running" if guest.runs() else "stopped",
    )
