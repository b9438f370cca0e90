"""A card that VMs and containers have in turn, switched by hand: `apply` starts or shuts down the VM, as Proxmox VE's
own buttons do (the handover is the hookscript's); `plan` says what a start would find, and changes nothing; `read`
tells how it goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from remote_scripts.shared import card_users, guests, handover
from remote_scripts.shared.card import Card
from remote_scripts.shared.card_record import Record
from remote_scripts.shared.handover import RecordedCard, RefusedError
from remote_scripts.shared.handover_driver import CardDriver
from remote_scripts.shared.shared_card import SharedCard
from remote_scripts.tools.system import System

#: Of what `qm` says, which has a task's log, too.
_SAID_LINES, _SAID_BYTES = 12, 4000
#: `qm` has its own time limits, beside a VM's for its shutdown.
_QM_SECONDS = 86400.0


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`vmid`: 0 for none, of `read`; `cards`: of `plan`, all that are handed over. `start`, or a shutdown, for which
    the VM has `seconds_off`, after which its power is cut, if `cut`. `known`: how much of the story is known, in bytes.
    """

    card: str
    vmid: int = 0
    cards: tuple[Card, ...] = ()
    start: bool = False
    seconds_off: int = 0
    cut: bool = False
    known: int = 0


@dataclass(frozen=True)
class Answer:
    """Whether it went well, and the end of what `qm` says."""

    well: bool
    said: str


@dataclass(frozen=True)
class Story:
    """`size`: of the story, in bytes; `story`: what is new of it; `record`: of the card; `runs`: of the VM."""

    size: int
    runs: Literal["yes", "no", "unknown"]
    record: Record
    story: str


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """`stands`: why nothing would be handed over; `refused`: why a start would be refused; `containers`: that would be
    shut down, in this order; `way`: how its driver would let go.
    """

    stands: str = ""
    refused: str = ""
    containers: tuple[str, ...] = ()
    way: str = ""


def apply(system: System, wanted: Wanted) -> Answer:
    """Starts the VM, or shuts it down."""
    words = ["start", str(wanted.vmid)]
    if not wanted.start:
        words = ["shutdown", str(wanted.vmid), "--timeout", str(wanted.seconds_off)]
        words += ["--forceStop", "1"] if wanted.cut else []
    done = system.run.ask("qm", *words, seconds=_QM_SECONDS)
    lines = system.log.clean(done.output + done.error).strip("\n").splitlines()
    return Answer(done.status == 0, system.log.clean("\n".join(lines[-_SAID_LINES:]), _SAID_BYTES))


def read(system: System, wanted: Wanted) -> Story:
    """What is new of the story, and what is noted of the card.

    :raises Failure: that can't be read.
    """
    content = system.files.read(handover.STORY) or b""
    # It is cut at its beginning now and then: what is new can't be told apart then, and the next lines can.
    new = content[wanted.known :]
    runs: Literal["yes", "no", "unknown"] = "unknown"
    # Before what is noted: a VM that has ended since has the card still, and the next look sees where it goes.
    if wanted.vmid:
        power = guests.power_of(system, "qm", str(wanted.vmid), 0)  # its caller asks again
        runs = "yes" if power == "on" else "no" if power == "off" else "unknown"
    record = handover.read_record(system, wanted.card)
    return Story(len(content), runs, record, system.log.clean(new))


def plan(system: System, wanted: Wanted) -> Rehearsal:
    """What would be found if the VM took the card now, which is with the host: the checks of a handover, and its look
    at who has the card.

    :raises Failure: what is noted of the card can't be read.
    """
    card = RecordedCard(system, next(card for card in wanted.cards if card.name == wanted.card))
    vmid = str(wanted.vmid)
    if card.is_on_vfio():
        return Rehearsal(stands="it is on vfio-pci already, not by this program: it stays there")
    try:
        if handover.run_at_work(system, vmid) is not None:
            raise RefusedError("an up or a destroy of this host is at work")
        _need_start(card, vmid)
        users = card_users.need_possible(card)
        card_users.need_unused(card, users)
        CardDriver(card).persistence()
    except RefusedError as error:
        return Rehearsal(refused=str(error))
    way = "its modules are unloaded" if card.is_only() else "it is unbound"
    return Rehearsal(containers=tuple(user.ctid for user in users), way=way)


def _need_start(card: SharedCard, vmid: str) -> None:
    power = guests.power_of(card.system, "qm", vmid)
    if power == "unknown":
        raise RefusedError(f"it isn't known whether VM {vmid} runs (`qm status {vmid}`)")
    if power == "on":
        raise RefusedError(f"VM {vmid} runs already, without it: shut it down first")
    if not card_users.names_card(card, vmid):
        raise RefusedError(f"no hostpci option of VM {vmid} names the card, which `pulumi up` gives it")
