"""Cards that a VM and this host's containers have in turn: each card's record, and what may be at work on the host.

/var/lib/homelab/handover/NAME.state is a card's record, and is on the disk before the step that it tells of. Without
it the card is with the host. `log` beside it is the story.
/run/homelab/passes has a line `VMID RUN` for each VM that a run lets through; /run/homelab/handing is locked by a
handover that is at work.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from contextlib import suppress

from remote_scripts.notes.card import Card
from remote_scripts.notes.record import Record
from remote_scripts.tools import passes
from remote_scripts.tools.errors import Failure, UnreadableError
from remote_scripts.tools.files import HOME
from remote_scripts.tools.kernel import boot_id
from remote_scripts.tools.notes import Note
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


class RefusedError(Exception):
    """A reason why a card can't go to a VM now."""


def cards(system: System) -> tuple[Card, ...]:
    """The cards that are handed over here.

    :raises Failure: that isn't as it was written.
    """
    try:
        return of_plain(tuple[Card, ...], json.loads(system.files.read(CARDS) or b""), CARDS)
    except ValueError as error:
        raise not_as_installed(f"{CARDS}: {error}") from error


def not_as_installed(found: str) -> Failure:
    """The failure of a list or a call that this program hasn't written."""
    return Failure(
        "what hands cards over, as it was installed",
        found,
        "which card goes to which VM can't be told from it; nothing was changed",
        "run `pulumi up --refresh`, which puts it there again",
    )


def note_of(name: str) -> Note[Record]:
    """A card's record, as it is noted."""
    return Note(f"{FOLDER}/{name}.state", Record)


def read_record(system: System, name: str) -> Record:
    """A card's record.

    :raises Failure: it can't be read, or isn't whole: where the card is isn't known then.
    """
    note = note_of(name)
    try:
        return note.read(system.files) or Record()
    except UnreadableError as error:
        raise error.but(
            why="a card may be on its way, or with a VM: nothing is decided without that", next=_NEXT
        ) from error


def write_record(system: System, name: str, record: Record, **changes: object) -> None:
    """Writes a card's record, with these changes, to the disk. A new state begins now; so does one with `since`,
    whatever that is.

    :raises OSError: it isn't on the disk.
    """
    if "since" in changes or changes.get("state", record.state) != record.state:
        changes |= {"since": int(time.time())}
    for key, value in changes.items():
        setattr(record, key, value.replace("\n", "; ") if isinstance(value, str) else value)
    record.boot = boot_id(system)
    note_of(name).write(system.files, record)


def recorded_names(system: System) -> list[str]:
    """The names of the cards that have a record."""
    records = [name for name in system.files.names(FOLDER) if name.endswith(".state") and not name.startswith(".")]
    return [name.removesuffix(".state") for name in records]


def is_away(system: System, name: str) -> bool:
    """Whether containers have to wait for a card.

    :raises Failure: as of `read_record`.
    """
    record = read_record(system, name)
    return record.state != "HOST" and (record.state != "HELD" or record.owed) and record.boot == boot_id(system)


def records_away(system: System) -> dict[str, Record]:
    """The cards that aren't with the host: name -> record.

    :raises Failure: as of `read_record`.
    """
    records = {name: read_record(system, name) for name in recorded_names(system)}
    # What was noted before the last start of the host tells nothing of now.
    return {
        name: record
        for name, record in records.items()
        if record.state not in ("HELD", "HOST") and record.boot == boot_id(system)
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
            f"shut down the VM that has it ({cards_away}), which gives the card back, then run `pulumi up` again "
            "(STUCK or DEAD: homelab doctor explains it)",
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
    # A run that isn't named yet waits for what an earlier one has begun, such as this start (layers/run_guard.py).
    return None if not run or passes.has(system, vmid, run) else run


def is_active(system: System, *units: str) -> bool:
    """Whether one of these units is at work, or systemd doesn't say that none is."""
    return system.run.ask("systemctl", "is-active", "-q", *units).status not in (3, 4)


def story_line(system: System, name: str, text: str) -> None:
    """A line in the story; a full disk stops nothing."""
    line = f"{time.strftime('%F %T')} {name}: {system.log.clean(text)}".replace("\n", "; ")
    with suppress(OSError):
        system.files.append(STORY, line.encode(), _STORY_BYTES)
