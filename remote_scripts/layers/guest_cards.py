"""The cards of a VM, and the options that have to change for them (guests/change.py).

Who asks has decided what the VM is to have, by what `read` answers. `revert` gives it back what it had.
"""

from __future__ import annotations

from remote_scripts.both.guest_cards import Answer, Wanted
from remote_scripts.guests import taking
from remote_scripts.guests.change import bring, foreseen, give_back, in_turn, in_turns
from remote_scripts.guests.guest import Guest
from remote_scripts.guests.requests import ChangedMeanwhile
from remote_scripts.shared.api import NodeApi
from remote_scripts.shared.guest_note import Options
from remote_scripts.tools.system import System


def read(system: System, wanted: Wanted) -> Answer:
    """The VM, and what of it is homelab's.

    :raises Failure: it can't be read.
    """
    api = NodeApi(system)
    return _answer(Guest(system, api, wanted.vmid), losers=tuple(_losers(system, api, wanted)))


def apply(system: System, wanted: Wanted) -> Answer:
    """Brings the options into force. Other VMs of the stack lose the cards first, unless something stands against it.

    :raises Failure: as of `bring`.
    """
    api = NodeApi(system)
    guest = Guest(system, api, wanted.vmid)
    if not guest.is_here or guest.digest != wanted.digest:
        return _answer(guest, done=False)
    if losers := _losers(system, api, wanted):
        foreseen(guest, {**_options(guest, wanted), **wanted.settings}, wanted.terms)
    for loser in losers:
        taking.take(system, api, loser, wanted.takes)
    with in_turn(Guest, system, api, wanted.vmid) as guest:
        try:
            if guest.digest == wanted.digest:
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


def _losers(system: System, api: NodeApi, wanted: Wanted) -> list[int]:
    stack = wanted.terms.owner.rpartition("/")[0]
    have_one = [Guest(system, api, vmid) for vmid in taking.losers(system, stack, wanted.takes, (wanted.vmid,))]
    return [
        guest.vmid for guest in have_one if guest.note.loses_one_of(wanted.takes, stack, guest.config, guest.devices)
    ]


def _answer(
    guest: Guest,
    *,
    losers: tuple[int, ...] = (),
    done: bool = True,
    log: list[str] | None = None,
) -> Answer:
    return Answer(
        node=guest.node,
        is_here=guest.is_here,
        config=guest.config,
        base=guest.base,
        originals=guest.note.originals,
        digest=guest.digest,
        runs=guest.is_here and guest.runs(),
        losers=losers,
        is_another=guest.is_another,
        is_under_way=guest.note.is_under_way,
        done=done,
        started=log is not None,
        log=tuple(log or ()),
    )
