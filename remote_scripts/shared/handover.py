"""Cards that a VM and this host's containers have in turn: what is noted of each, and who may be at work.

/var/lib/homelab/handover/NAME.state has lines KEY=VALUE, and is on the disk before the step that it tells of. Without
it the card is with the host. `log` beside it is the story; NAME.turned_away tells of a VM that came during a run.
/run/homelab/passes has a line `VMID RUN` for each VM that a run lets through; /run/homelab/handing is locked by a
handover that is at work.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Literal, get_args

from remote_scripts.shared import passes
from remote_scripts.shared.card import Card
from remote_scripts.shared.kernel import boot_id
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


@dataclass(kw_only=True)
class Noted:
    """What is noted of a card, as text. `since`: seconds since 1970, for people; `clock`: the same in seconds of this
    boot, which no setting of the time moves (CLOCK_BOOTTIME); `boot`: of the host; `containers`: those to be
    started again, in the order in which they are shut down; `owed`: yes, while nothing but the card is back; `taken`:
    the numbers at the last take, where `numbers` are of an earlier one, which containers that are owed a start had;
    `numbers`, `modules`, `persistence`, `units`, `d3cold` (functions that may sleep so deep): as they were; `known`:
    CTID=ADDRESSES of network cards, by which a container is told from another one of its id; `given_up`: those that
    aren't tried any more.
    """

    state: State = "HOST"
    vm: str = ""
    boot: str = ""
    since: str = ""
    why: str = ""
    containers: str = ""
    owed: str = ""
    numbers: str = ""
    taken: str = ""
    modules: str = ""
    persistence: str = ""
    units: str = ""
    d3cold: str = ""
    known: str = ""
    given_up: str = ""
    clock: str = ""

    @property
    def age(self) -> float:
        """Seconds since its state began in this boot; endless where that isn't known."""
        if self.clock.isdecimal():
            return time.clock_gettime(time.CLOCK_BOOTTIME) - int(self.clock)
        return time.time() - int(self.since) if self.since.isdecimal() else float("inf")

    @property
    def at(self) -> str:
        """When its state began."""
        return time.strftime("%F %T", time.localtime(int(self.since) if self.since.isdecimal() else 0))


_KEYS = tuple(one.name for one in fields(Noted))
# A line that stands there only where it says something: earlier versions had none.
_IF_ANY = ("known", "given_up", "clock")


def cards(system: System) -> tuple[Card, ...]:
    """The cards that are handed over here.

    :raises ValueError: that isn't as it was written.
    """
    return of_plain(tuple[Card, ...], json.loads(system.files.read(CARDS) or b""), CARDS)


def state_file(name: str) -> str:
    """Where a card's state is noted."""
    return f"{FOLDER}/{name}.state"


def noted(system: System, name: str) -> Noted:
    """What is noted of a card.

    :raises Failure: it can't be read, or isn't whole: where the card is isn't known then.
    """
    path = state_file(name)
    try:
        text = system.files.at(path).read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return Noted()
    except OSError as error:
        raise _unknown(path, f"it can't be read: {error.strerror}") from error
    pairs = dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line)
    if pairs.get("state") == "FREE":  # by versions before 1.0, which may have been at work as this one came
        pairs["state"] = "DRAINING"
    if pairs.get("state") not in get_args(State):
        raise _unknown(path, "it has no state that this program knows")
    return Noted(**{key: value for key, value in pairs.items() if key in _KEYS})  # type: ignore[arg-type]


def note(system: System, name: str, what: Noted, **changes: str) -> None:
    """Notes the state of a card, with these changes, on the disk. A new state begins now; so does one with `since`,
    whatever that is.

    :raises OSError: it isn't on the disk.
    """
    if "since" in changes or changes.get("state", what.state) != what.state:
        now = int(time.clock_gettime(time.CLOCK_BOOTTIME))
        changes |= {"since": str(int(time.time())), "clock": str(now)}
    for key, value in changes.items():
        setattr(what, key, value.replace("\n", "; "))
    what.boot = boot_id(system)
    if not what.boot:
        raise OSError("which boot this is can't be read")  # it would count as an earlier one's
    text = "".join(f"{key}={getattr(what, key)}\n" for key in _KEYS if getattr(what, key) or key not in _IF_ANY)
    system.files.need_folder(system.files.at(FOLDER))
    system.files.write(state_file(name), text.encode(), 0o600)


def _unknown(path: str, found: str) -> Failure:
    return Failure(
        f"to know where the card is, by {path}",
        found,
        "a card may be on its way, or with a VM: nothing is decided without that",
        _NEXT,
    )


def away(system: System, vmids: Collection[str] = ()) -> str:
    """Which cards aren't with the host, in words; empty: all are.

    :param vmids: what is so on account of these VMs is left out.
    :raises Failure: as of `noted`.
    """
    found = []
    for file in system.files.names(FOLDER):
        name, dot, kind = file.rpartition(".")
        if not dot or kind != "state" or name.startswith("."):
            continue
        one = noted(system, name)
        if one.vm and one.vm in vmids and one.state not in ("STUCK", "DEAD"):
            continue
        # What was noted before the last start of the host tells nothing of now. That it was isn't known where this one
        # can't be read.
        if one.state in ("HELD", "HOST") or one.boot != (boot_id(system) or one.boot):
            continue
        where = {"VM": f"is with VM {one.vm}"} | dict.fromkeys(("STUCK", "DEAD"), f"is {one.state} after VM {one.vm}")
        words = where.get(one.state, f"is on its way to or from VM {one.vm} ({one.state})")
        found.append(f"gpus.{name} {words} since {one.at}")
    return "; ".join(found)


def need_rest(system: System, vmids: Collection[str] = ()) -> None:
    """Every card that is handed over is with the host. A container has none to hand over.

    :param vmids: as of `away`.
    :raises Failure: one is away, or nobody knows.
    """
    found = "" if system.is_container else away(system, vmids)
    if found:
        raise Failure(
            "this host's shared cards with the host",
            found,
            "NVIDIA's driver and containers can't be changed, verified or given back while one of their cards is away; "
            "nothing was changed",
            "shut that VM down, which gives the card back, then run the same again (STUCK or DEAD: homelab doctor "
            "explains it)",
        )


def run_at_work(system: System, vmid: str = "") -> str | None:
    """Who is at work on this host, unless that run lets this VM through; None: nobody.

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
    who = system.files.line(UP)
    return None if passes.has(system, vmid, who) else who


def is_active(system: System, *units: str) -> bool | None:
    """Whether one of these units is at work; None: systemd doesn't say it."""
    status = system.run.ask("systemctl", "is-active", "-q", *units).status
    return {0: True, 3: False, 4: False}.get(status)


def story_line(system: System, name: str, text: str) -> None:
    """A line in the story; that there is no room stops nobody."""
    line = f"{time.strftime('%F %T')} {name}: {system.log.clean(text)}".replace("\n", "; ")
    with suppress(OSError):
        system.files.append(STORY, line.encode(), _STORY_BYTES)
