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
from remote_scripts.shared.handover import RefusedError
from remote_scripts.shared.kernel import boot_id
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
    """`stands`: where the card is, where a start goes on from there; `refused`: why a start would be refused;
    `containers`: that would be shut down, in this order; `way`: how its driver would let go.
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
    """What would be found if the VM took the card now: the checks of a handover, and its look at who has the card.

    :raises Failure: what is noted of the card can't be read.
    """
    card = SharedCard(system, next(card for card in wanted.cards if card.name == wanted.card))
    vmid = str(wanted.vmid)
    record = handover.read_record(system, card.name)
    # As a start finds it after a boot.
    if record.boot != boot_id(system) and record.state != "DEAD":
        record = Record()
    try:
        if stands := _where(card, record, vmid):
            return Rehearsal(stands=stands)
        _need_start(card, vmid)
        users = card_users.need_possible(card, vmid)
        card_users.need_unused(card, users)
    except RefusedError as error:
        return Rehearsal(refused=str(error))
    way = "its modules are unloaded" if card.is_only() else "it is unbound"
    return Rehearsal(containers=tuple(user.ctid for user in users), way=way)


def _where(card: SharedCard, record: Record, vmid: str) -> str:
    """Where the card is, if a start of the VM goes on from there; empty: it is with its driver.

    :raises RefusedError: the start would fail.
    """
    is_its_own = record.vm == vmid and record.state in ("VM", "RETURNING")
    if handover.run_at_work(card.system, vmid) is not None and not is_its_own and card_users.names_card(card, vmid):
        raise RefusedError("an up or a destroy of this host is at work")
    if record.state not in ("HOST", "HELD", "VM", "RETURNING"):
        raise RefusedError(f"it is {record.state}: {record.why or 'a handover is at work'}")
    if record.state == "VM" and card_users.why_vm_keeps(card, record) is not None:
        if not is_its_own:
            raise RefusedError(f"VM {record.vm} has it since {record.at}: shut that VM down first")
        return f"VM {vmid} has it already"
    if record.state in ("VM", "RETURNING"):
        return f"it is on its way back from VM {record.vm}, and a start of VM {vmid} goes on from there"
    return "it is on vfio-pci already, not by this program: it stays there" if card.is_on_vfio() else ""


def _need_start(card: SharedCard, vmid: str) -> None:
    power = guests.power_of(card.system, "qm", vmid)
    if power == "unknown":
        raise RefusedError(f"it isn't known whether VM {vmid} runs (`qm status {vmid}`)")
    if power == "on":
        raise RefusedError(f"VM {vmid} runs already, without it: shut it down first")
    if not card_users.names_card(card, vmid):
        raise RefusedError(f"no hostpci option of VM {vmid} names the card, which `pulumi up` gives it")
