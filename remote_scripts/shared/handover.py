"""Cards that a VM and this host's containers have in turn: each card's record, and what may be at work on the host.

/var/lib/homelab/handover/NAME.state has lines KEY=VALUE, and is on the disk before the step that it tells of. Without
it the card is with the host. `log` beside it is the story; NAME.turned_away tells of a VM that came during a run.
/run/homelab/passes has a line `VMID RUN` for each VM that a run lets through; /run/homelab/handing is locked by a
handover that is at work.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from remote_scripts.shared import passes
from remote_scripts.shared.card import Card
from remote_scripts.shared.kernel import boot_id
from remote_scripts.shared.shared_card import NodeNumbers, SharedCard, parse_numbers
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.files import HOME
from remote_scripts.tools.plain import of_plain
from remote_scripts.tools.state import UP
from remote_scripts.tools.system import System

FOLDER = f"{HOME}/handover"
STORY = f"{FOLDER}/log"
PROGRAM = "/usr/local/sbin/homelab-handover"
HANDING = "handing"
#: The cards that are handed over here.
CARDS = "/etc/homelab-handover.json"
#: How much of the story is kept, in bytes.
_STORY_BYTES = 131072
_NEXT = "see why, and mend it; a reboot of the host gives its drivers every card, and then the file may be removed"

#: HOST: there is no file. DRAINING, DETACHED: on the way to the VM. HELD: with the host, and `why` the VM didn't get it
#: or its containers weren't started. STUCK: a driver doesn't let go. DEAD: the card doesn't answer.
State = Literal["HOST", "DRAINING", "DETACHED", "VM", "RETURNING", "HELD", "STUCK", "DEAD"]


class RefusedError(Exception):
    """A reason why a card can't go to a VM now."""


@dataclass(kw_only=True)
class Record:
    """The lines of a card's state file. `since`: seconds since 1970, for people; `clock`: the same in seconds of this
    boot, which no setting of the time moves (CLOCK_BOOTTIME); `boot`: of the host; `containers`: those to be started
    again, in the order in which they are shut down; `owed`: nothing but the card is back yet; `taken`: the numbers at
    the last take, where `numbers` are of an earlier one, which containers that are owed a start had; `numbers`,
    `modules`, `persistence`, `units`, `d3cold` (functions that may sleep so deep): as they were; `known`: a container
    -> the addresses of its network cards, by which it is told from another one of its id; `given_up`: those that aren't
    tried any more.
    """

    state: State = "HOST"
    vm: str = ""
    boot: str = ""
    since: str = ""
    why: str = ""
    containers: tuple[str, ...] = ()
    owed: bool = False
    numbers: NodeNumbers | None = None
    taken: NodeNumbers | None = None
    modules: tuple[str, ...] = ()
    persistence: str = ""
    units: str = ""
    d3cold: tuple[str, ...] = ()
    known: dict[str, str] = field(default_factory=dict)
    given_up: tuple[str, ...] = ()
    clock: str = ""

    @property
    def age(self) -> float:
        """Seconds since its state began in this boot; endless where that isn't known."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(self.clock) if self.clock.isdecimal() else float("inf")

    @property
    def at(self) -> str:
        """When its state began."""
        return time.strftime("%F %T", time.localtime(int(self.since) if self.since.isdecimal() else 0))

    @property
    def last_numbers(self) -> NodeNumbers:
        """At the last take."""
        return self.taken or self.numbers or NodeNumbers()


_KEYS = tuple(key.name for key in fields(Record))
_PARSED: dict[str, Callable[[str], object]] = {
    **dict.fromkeys(("containers", "modules", "d3cold", "given_up"), lambda text: tuple(text.split())),
    **dict.fromkeys(("numbers", "taken"), lambda text: parse_numbers(text) if text else None),
    "known": lambda text: dict(pair.partition("=")[::2] for pair in text.split()),
    "owed": bool,
}


def cards(system: System) -> tuple[Card, ...]:
    """The cards that are handed over here.

    :raises ValueError: that isn't as it was written.
    """
    return of_plain(tuple[Card, ...], json.loads(system.files.read(CARDS) or b""), CARDS)


def state_file(name: str) -> str:
    """The path of a card's record."""
    return f"{FOLDER}/{name}.state"


def read_record(system: System, name: str) -> Record:
    """A card's record.

    :raises Failure: it can't be read, or isn't whole: where the card is isn't known then.
    """
    path = state_file(name)
    try:
        text = system.files.at(path).read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return Record()
    except OSError as error:
        raise _unknown(path, f"it can't be read: {error.strerror}") from error
    pairs = dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line)
    if pairs.get("state") not in get_args(State):
        raise _unknown(path, "it has no state that this program knows")
    values = {key: _PARSED.get(key, str)(text) for key, text in pairs.items() if key in _KEYS}
    return Record(**values)  # type: ignore[arg-type]


def _text_of(value: object) -> str:
    """As a line of the file has it."""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, dict):
        return " ".join(f"{key}={text}" for key, text in value.items())
    return " ".join(value) if isinstance(value, tuple) else str(value or "")


def write_record(system: System, name: str, record: Record, **changes: object) -> None:
    """Writes a card's record, with these changes, to the disk. A new state begins now; so does one with `since`,
    whatever that is.

    :raises OSError: it isn't on the disk.
    """
    if "since" in changes or changes.get("state", record.state) != record.state:
        seconds = int(time.clock_gettime(time.CLOCK_BOOTTIME))
        changes |= {"since": str(int(time.time())), "clock": str(seconds)}
    for key, value in changes.items():
        setattr(record, key, value.replace("\n", "; ") if isinstance(value, str) else value)
    record.boot = boot_id(system)
    if not record.boot:
        raise OSError("which boot this is can't be read")  # it would count as an earlier one's
    texts = {key: _text_of(getattr(record, key)) for key in _KEYS}
    text = "".join(f"{key}={value}\n" for key, value in texts.items())
    system.files.need_folder(FOLDER)
    system.files.write(state_file(name), text.encode(), 0o600)


def recorded_names(system: System) -> Iterator[str]:
    """The names of the cards that have a record."""
    for file in system.files.names(FOLDER):
        name, dot, kind = file.rpartition(".")
        if dot and kind == "state" and not name.startswith("."):
            yield name


def owed_starts(system: System) -> list[str]:
    """The containers that were shut down for a VM in this boot, are off still, and are to be started again. What can't
    be read keeps no other one from being named: a run ends there (`need_rest`).
    """
    ctids: list[str] = []
    for name in recorded_names(system):
        with suppress(Failure):
            record = read_record(system, name)
            if record.state == "HELD" and record.boot == boot_id(system):
                ctids += [ctid for ctid in record.containers if ctid not in record.given_up]
    return ctids


def _unknown(path: str, found: str) -> Failure:
    return Failure(
        f"to know where the card is, by {path}",
        found,
        "a card may be on its way, or with a VM: nothing is decided without that",
        _NEXT,
    )


def records_away(system: System) -> dict[str, Record]:
    """The cards that aren't with the host: name -> record.

    :raises Failure: as of `read_record`.
    """
    records = {name: read_record(system, name) for name in recorded_names(system)}
    # What was noted before the last start of the host tells nothing of now. That it was isn't known where this one
    # can't be read.
    return {
        name: record
        for name, record in records.items()
        if record.state not in ("HELD", "HOST") and record.boot == (boot_id(system) or record.boot)
    }


def away(system: System, vmids: Collection[str] = ()) -> str:
    """These in words; empty: there are none.

    :param vmids: what is so on account of these VMs is left out.
    :raises Failure: as of `read_record`.
    """
    cards_away = []
    for name, record in records_away(system).items():
        if record.vm and record.vm in vmids and record.state not in ("STUCK", "DEAD"):
            continue
        where = {"VM": f"is with VM {record.vm}"} | dict.fromkeys(
            ("STUCK", "DEAD"), f"is {record.state} after VM {record.vm}"
        )
        words = where.get(record.state, f"is on its way to or from VM {record.vm} ({record.state})")
        cards_away.append(f"gpus.{name} {words} since {record.at}")
    return "; ".join(cards_away)


def need_rest(system: System, vmids: Collection[str] = ()) -> None:
    """Every card that is handed over is with the host. A container has none to hand over.

    :param vmids: as of `away`.
    :raises Failure: one is away, or where it is isn't known.
    """
    cards_away = "" if system.is_container else away(system, vmids)
    if cards_away:
        raise Failure(
            "this host's shared cards with the host",
            cards_away,
            "NVIDIA's driver and containers can't be changed, verified or given back while one of their cards is away; "
            "nothing was changed",
            "shut that VM down, which gives the card back, then run the same again (STUCK or DEAD: homelab doctor "
            "explains it)",
        )


def run_at_work(system: System, vmid: str = "") -> str | None:
    """The run that is at work on this host, unless it lets this VM through; None: there is none.

    :raises Failure: it can't be told.
    """
    try:
        if not system.work.is_held():
            return None
    except OSError as error:
        raise Failure(
            "to know whether a run of homelab is at work on this host",
            f"{UP} can't be asked: {error.strerror}",
            "its steps need the cards where they are",
            "see on the host what is wrong with /run/homelab, then try it again",
        ) from error
    run = system.files.line(UP)
    return None if passes.has(system, vmid, run) else run


def is_active(system: System, *units: str) -> bool | None:
    """Whether one of these units is at work; None: systemd doesn't say it."""
    status = system.run.ask("systemctl", "is-active", "-q", *units).status
    return {0: True, 3: False, 4: False}.get(status)


def story_line(system: System, name: str, text: str) -> None:
    """A line in the story; a full disk stops nothing."""
    line = f"{time.strftime('%F %T')} {name}: {system.log.clean(text)}".replace("\n", "; ")
    with suppress(OSError):
        system.files.append(STORY, line.encode(), _STORY_BYTES)


class RecordedCard(SharedCard):
    """A card with its record. Its caller holds the host's lock for every change.

    :raises Failure: the record can't be read.
    """

    def __init__(self, system: System, card: Card) -> None:
        super().__init__(system, card)
        self.record = read_record(system, card.name)

    def say(self, text: str) -> None:
        """A line for the task's log or the journal, and for the story."""
        self.system.log.say(f"{self.name}: {text}")
        story_line(self.system, self.name, text)

    def save(self, **changes: object) -> bool:
        """Whether the record, with these changes, is on the disk; in memory it is in any case."""
        try:
            write_record(self.system, self.name, self.record, **changes)
        except OSError:
            return False
        return True

    def need_saved(self, **changes: object) -> None:
        """:raises RefusedError: the record, with these changes, can't be written."""
        if not self.save(**changes):
            raise RefusedError("its state can't be noted on the disk")

    def remove(self) -> None:
        """The card is with the host again: it has no record."""
        self.system.files.remove(state_file(self.name))
        self.record = Record()

    def rest(self, state: State, why: str) -> None:
        """The card stays in this state, for this reason."""
        self.say(f"{state}: {why}")
        if not self.save(state=state, why=why):
            self.say("that can't be noted on the disk")

    def mark_stuck(self, step: str) -> None:
        """A step of the card's waits in the kernel."""
        self.rest(
            "STUCK",
            f"{step} has not come to an end: the driver waits in the kernel, and as a rule only a reboot of the host "
            "ends that. Nothing is tried while it waits",
        )

    def records_of_others(self) -> Iterator[tuple[str, Record | None]]:
        """Each other card's name and record; None: it can't be read, which says nothing of this card."""
        for name in recorded_names(self.system):
            if name != self.name:
                try:
                    yield name, read_record(self.system, name)
                except Failure:
                    yield name, None
