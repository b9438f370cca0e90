"""The cards of a VM, and the options that have to change for them (guests/change.py).

Who asks has decided what the VM is to have, by what `read` answers. `revert` gives it back what it had.
"""

from __future__ import annotations

from remote_scripts.both.guest_cards import Answer, Wanted
from remote_scripts.guests.change import bring, give_back, in_turn, in_turns
from remote_scripts.guests.guest import Guest
from remote_scripts.guests.requests import ChangedMeanwhile
from remote_scripts.notes.guest_note import Options
from remote_scripts.pve.api import NodeApi
from remote_scripts.tools.system import System


def read(system: System, wanted: Wanted) -> Answer:
    """The VM, and what of it is homelab's.

    :raises Failure: it can't be read.
    """
    return _answer(Guest(system, NodeApi(system), wanted.vmid))


def apply(system: System, wanted: Wanted) -> Answer:
    """Brings the options into force.

    :raises Failure: as of `bring`.
    """
    with in_turn(Guest, system, NodeApi(system), wanted.vmid) as guest:
        try:
            if guest.is_here and guest.digest == wanted.digest:
                return _answer(guest, log=bring(guest, _options(guest, wanted), wanted.terms, wanted.settings))
        except ChangedMeanwhile:
            guest.read()
        return _answer(guest, done=False)


def _options(guest: Guest, wanted: Wanted) -> Options:
    had = {key: value for key, value in guest.note.wanted.items() if key not in wanted.settings}
    return had if wanted.options is None else wanted.options


def revert(system: System, wanted: Wanted) -> Answer:
    """Gives the VM back what it had, as far as it still is as homelab has set it.

    :raises Failure: as of `bring`.
    """

    def back(guest: Guest) -> Answer:
        give_back(guest, wanted.terms, goes_away=wanted.goes_away)
        return _answer(guest)

    return in_turns(Guest, system, wanted.vmid, back)


def _answer(guest: Guest, *, done: bool = True, log: list[str] | None = None) -> Answer:
    return Answer(
        node=guest.node,
        is_here=guest.is_here,
        config=guest.config,
        base=guest.base,
        originals=guest.note.originals,
        owner=guest.note.owner,
        digest=guest.digest,
        runs=guest.is_here and guest.runs(),
        is_another=guest.is_another,
        is_under_way=guest.note.is_under_way,
        done=done,
        started=log is not None,
        log=tuple(log or ()),
    )
