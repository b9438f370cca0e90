"""A guest brought to other options, as one transaction on the host; it goes on when its client dies.

1. The note says what is about to be set, and what is there now (notes/guest_note.py).
2. The options are set by digest, while the guest runs: what Proxmox VE refuses has cost nothing.
3. Where one of them waits for the next start, and may not (`Terms.waits`), the guest is shut down and started, and has
   to stay up.
4. The note says that it is done.

A failure in between gives the guest what it had before, and starts it if it ran. Any line may be the last one that is
executed, by a power cut or a kill: the next transaction begins at 1, and finds by the note which values are homelab's,
and whether the guest is off because homelab shut it down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TypeVar

from remote_scripts.both.terms import Terms
from remote_scripts.cluster import ha
from remote_scripts.guests import power
from remote_scripts.guests.guest import Guest
from remote_scripts.guests.power import SwitchedElsewhere
from remote_scripts.guests.requests import ChangedMeanwhile
from remote_scripts.notes import guest_notes, owed
from remote_scripts.notes.guest_note import Note, Options, identity, is_another
from remote_scripts.pve.api import NodeApi
from remote_scripts.pve.properties import differing, same
from remote_scripts.tools.errors import Failure, NotStarted
from remote_scripts.tools.state import STEP
from remote_scripts.tools.system import System

# How long another transaction of the same guest is waited for, in seconds.
_TURN_SECONDS = 1200.0
# How often a guest is changed anew, where somebody else changes it meanwhile.
_TRIES = 3
# How often one that is to run again is started.
_STARTS = 3
G = TypeVar("G", bound=Guest)
T = TypeVar("T")


@contextmanager
def in_turn(kind: type[G], system: System, api: NodeApi, vmid: int) -> Iterator[G]:
    """The guest, for one transaction at a time; whoever has a turn takes no second one. It isn't the host's lock: a
    shutdown takes minutes, in which other guests have their turns, and a hookscript that waits for a shared card takes
    that lock.

    :param kind: the class of its kind.
    :raises Failure: an earlier transaction is still at work.
    """
    name, who = f"guest-{vmid}", system.work.client
    system.work.client = ""  # what it has begun it ends, also without the run that has asked for it
    with system.work.alone(name, _TURN_SECONDS, f"guest {vmid} changed"):
        whose = STEP if system.work.lock is not None else who or "this host itself"
        with suppress(OSError):  # /run is full: a run that comes waits for it all the same
            system.work.write(name, f"{whose}\n")
        guest_notes.tidy(system, kind.kind, vmid)
        yield kind(system, api, vmid)


def in_turns(kind: type[G], system: System, vmid: int, work: Callable[[G], T]) -> T:
    """Does something with a guest in its turn; anew, where somebody else changes it meanwhile. Arguments as of
    `in_turn`, errors also as of `work`.
    """
    api, left = NodeApi(system), _TRIES
    while True:
        left -= 1
        with in_turn(kind, system, api, vmid) as guest:
            try:
                return work(guest)
            except ChangedMeanwhile:
                if not left:
                    raise


def foreseen(guest: Guest, options: Options, terms: Terms) -> tuple[Options, bool, bool]:
    """What `bring` sets, whether the guest ran, and whether it is to run.

    :param options: with the settings that become its own.
    :raises Failure: something stands against it.
    """
    note, runs = guest.note, guest.runs()
    target = {**{key: guest.base.get(key) for key in note.values}, **options}
    change = differing(target, guest.config)
    ran = runs or power.verdict(guest) == "due"
    is_to_run = ran if terms.power == "keep" else terms.power == "running"
    if change or note.before or runs is not is_to_run:
        ha.need_own_power(guest.system, guest.kind, guest.vmid)
    if is_to_run and (change or note.before):
        guest.need_startable(change)
    return change, ran, is_to_run


def bring(guest: Guest, options: Options, terms: Terms, settings: Options | None = None) -> list[str] | None:
    """Brings a guest to its own options and these: what it has from homelab otherwise becomes what it was before.

    :param settings: of a VM that homelab has made: they become its own options.
    :returns: the log of its start; None: it wasn't started.
    :raises ChangedMeanwhile: somebody else has changed its configuration since it was read; nothing was done.
    :raises OSError: it can't be let start; nothing was done.
    :raises Failure: it has what it had before, unless the error says otherwise.
    """
    note, options_and_settings = guest.note, {**options, **(settings or {})}
    change, ran, is_to_run = foreseen(guest, options_and_settings, terms)
    if is_to_run:
        power.let_start(guest)
    new = guest.note_of(options_and_settings, change, terms.owner)
    guest.write_note(replace(new, shutdown=terms.shutdown, otherwise=terms.otherwise))
    log = None
    try:
        guest.set(change)
        if guest.runs() and (terms.power == "stopped" or guest.needs_restart({*new.values}.difference(terms.waits))):
            ran = is_to_run = terms.power != "stopped"  # its owner may have started it meanwhile
            power.shut_down(guest, terms.shutdown, terms.otherwise, "change" if is_to_run else None)
        if is_to_run and not guest.runs():
            _write_again(guest, change)
            log = power.start(guest, by_settings=terms.power == "running")
    except SwitchedElsewhere as switched:
        guest.settle()
        guest.system.log.say(f"{guest.label} stays as it is: {switched.found}; it has the change when it starts")
    except ChangedMeanwhile:
        if not any(same(key, guest.config.get(key), value) for key, value in change.items()):
            guest.write_note(note)
        raise
    except Failure as failure:
        raise _taken_back(guest, note, failure, ran=ran) from failure
    if guest.is_off and terms.power == "keep" and power.verdict(guest) == "unknown":
        guest.system.log.say(f"note: {guest.label} stays off: {owed.UNKNOWN}")
    guest.give_up()
    guest.read()
    if not options:
        guest.give_form_back()
    guest.write_note(guest.note_after(options))
    return log


def give_back(guest: Guest, terms: Terms, *, goes_away: bool) -> None:
    """Gives a guest back what it had, as far as it still is as homelab has set it. It runs if it did.

    :param goes_away: the guest itself is removed next, and then what is noted of it.
    :raises Failure: as of `bring`.
    """
    if guest.note and guest.note.owner not in ("", terms.owner):
        guest.system.log.say(f"{guest.label} is {guest.note.owner}'s now, and keeps what it was given")
    elif not guest.node:
        guest.write_note(guest.form())
    elif guest.is_here and not goes_away:
        if guest.is_another:
            guest.system.log.say(f"{guest.label} isn't the one that was given its cards: it stays as it is")
        for key, value in guest.note.originals.items():
            if not same(key, value, guest.base.get(key)):
                now = guest.base.get(key, "not there")
                guest.system.log.say(f"note: {key} is {now}, and stays so (before this program it was {value})")
        bring(guest, {}, replace(terms, power="keep"))


def _write_again(guest: Guest, change: Options) -> None:
    """Once a guest is off, Proxmox VE writes its configuration back as it had read it. What was written in between is
    lost as a whole, and is written again here. What somebody else has set since stays.
    """
    guest.settle()
    earlier = identity(guest.config)
    guest.read()
    config, before = guest.config, guest.note.before
    if identity(config) != earlier and is_another(guest.note, config):
        raise power.switched(guest, "its id was given to another guest")
    if all(same(key, config.get(key), before.get(key)) for key in change):
        guest.set(differing(change, config))


def _taken_back(guest: Guest, note: Note, failure: Failure, *, ran: bool) -> Failure:
    """Gives a guest whose change has failed what it had, also what waited for its next start. What others have set
    meanwhile stays. The failure, with the outcome, which comes first if the guest is left off.
    """
    kind = NotStarted if guest.begun else Failure
    outcome, found = f"{guest.label} has what it had before", failure.found
    try:
        _set_back(guest)
        if ran and not guest.runs():
            _start_back(guest)
            outcome += ", and runs"
        if not note:
            guest.read()
            guest.give_form_back()
        guest.write_note(note.settled())
    except SwitchedElsewhere as switched:
        guest.write_note(note.settled())
        outcome += f", and stays off: {switched.found}"
    except Failure as second:  # the note still has all of it
        outcome = (
            f"what {guest.label} has isn't known ({second.found}): run `pulumi up` again, which goes on from there"
        )
        found = f"{guest.label} is off now, as far as is known: {found}" if ran and guest.is_off else found
    return kind(failure.wanted, f"{found}\n        {outcome}", failure.why, failure.next)


def _set_back(guest: Guest) -> None:
    """Gives it what it had before the change that is under way; what others have set meanwhile stays."""
    guest.settle()
    guest.read()
    note, config = guest.note, guest.config
    guest.set(differing({key: old for key, old in note.before.items() if note.has_set(key, config.get(key))}, config))


def resume(guest: Guest) -> None:
    """Starts a guest that is owed a start; a change that was killed has left it what it had before.

    :raises SwitchedElsewhere: somebody else has switched it.
    :raises Failure: it can't be given back, or doesn't start.
    """
    _set_back(guest)
    power.start(guest)
    guest.write_note(guest.note.settled())


def _start_back(guest: Guest) -> None:
    """:raises Failure: it doesn't start. What is left of the start that failed may be in the way for a while."""
    for left in reversed(range(_STARTS)):
        try:
            power.start(guest)
        except Failure as failure:
            if not left or isinstance(failure, SwitchedElsewhere):
                raise
            guest.settle()
        else:
            return
