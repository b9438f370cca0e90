"""The cards of a VM, and the options that have to change for them (guests/change.py).

Who asks has decided what the VM is to have, by what `read` answers. `revert` gives it back what it had.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from remote_scripts.guests.change import Terms, bring, give_back, in_turn, in_turns
from remote_scripts.guests.guest import Guest
from remote_scripts.guests.requests import ChangedMeanwhile
from remote_scripts.shared.api import NodeApi
from remote_scripts.shared.guest_note import Options
from remote_scripts.tools.system import System


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for. `revert` needs no options."""

    vmid: int
    terms: Terms = field(default_factory=Terms)
    options: dict[str, str | None] | None = None
    """All that the VM is to have from homelab; None: what it has. A key of None: it isn't to have it."""
    settings: dict[str, str | None] = field(default_factory=dict)
    """Of a VM that homelab has made: what becomes its own."""
    digest: str = ""
    """Of the configuration by which that was decided."""
    goes_away: bool = False
    """The VM itself is removed next, and then what is noted of it: until then its cards can be taken out again."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The VM as it is now."""

    node: str
    """The node that it is on; empty: there is no such VM."""
    is_here: bool
    """Of another node's VM that node alone can say the rest, and change it."""
    config: dict[str, str]
    """As its next start takes it."""
    base: dict[str, str]
    """As it would be without homelab."""
    originals: dict[str, str | None]
    """What is noted of before."""
    digest: str
    runs: bool
    is_another: bool = False
    """What is noted is of a VM that had its id before."""
    is_under_way: bool = False
    """A change was begun, and hasn't ended: it may be off, though it ran."""
    done: bool = True
    """False: its configuration isn't the one by which was decided; nothing was changed."""
    started: bool = False
    log: tuple[str, ...] = ()
    """Of its start."""


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
        digest=guest.digest,
        runs=guest.is_here and guest.runs(),
        is_another=guest.is_another,
        is_under_way=guest.note.is_under_way,
        done=done,
        started=log is not None,
        log=tuple(log or ()),
    )
