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


@dataclass(frozen=True)
class Rehearsal:
    """`stands`: where the card is, where it isn't simply with its driver: nothing is looked at then. `refused`: why a
    start would be refused, or empty; `containers`: that would be shut down, in this order; `ends`: who has the card and
    ends with them; `holders`: who else has it; `way`: how its driver would let go.
    """

    state: str
    stands: str
    refused: str
    containers: tuple[str, ...]
    ends: tuple[str, ...]
    holders: tuple[str, ...]
    way: str


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
    """What would be found if the VM took the card now: every check of a handover, and its look at who has the card.

    :raises Failure: what is noted of the card can't be read.
    """
    card = SharedCard(system, next(card for card in wanted.cards if card.name == wanted.card))
    vmid = str(wanted.vmid)
    record = handover.read_record(system, card.name)
    # As a start finds it after a boot.
    if record.boot != boot_id(system) and record.state != "DEAD":
        record = Record()
    reasons = []
    is_its_own = record.vm == vmid and record.state in ("VM", "RETURNING")
    if handover.run_at_work(system, vmid) is not None and not is_its_own and card_users.names_card(card, vmid):
        reasons.append("an up or a destroy of this host is at work")
    stands, refused = _where(card, record, vmid)
    way = "its modules are unloaded" if card.is_only() else "it is unbound"
    if stands:
        reasons += [refused] if refused else []
        return Rehearsal(record.state, stands, "; ".join(reasons), (), (), (), way)
    containers, ends, stays = _look(card, vmid, reasons)
    return Rehearsal(record.state, "", "; ".join(dict.fromkeys(reasons)), containers, ends, stays, way)


def _where(card: SharedCard, record: Record, vmid: str) -> tuple[str, str]:
    """Where the card is, if it is away or on vfio-pci, from where a start goes on; and why that would fail now."""
    if record.state == "VM":
        if record.vm != vmid:
            if card_users.why_vm_keeps(card, record) is None:
                return (
                    f"VM {record.vm} had it last, and has it no more: it comes back before VM {vmid} gets it",
                    "",
                )
            why = f"nothing is shut down for VM {vmid} but containers: shut VM {record.vm} down first"
            return f"VM {record.vm} has it since {record.at}", why
        power = guests.power_of(card.system, "qm", vmid)
        if power == "on":
            return f"VM {vmid} runs, and has it already", ""
        if power == "unknown":
            return f"VM {vmid} had it last", f"it isn't known whether VM {vmid} runs (`qm status {vmid}`)"
        return f"VM {vmid} had it last, and it isn't back yet: a start of that VM goes on from there", ""
    if record.state == "RETURNING":
        return f"it is on its way back from VM {record.vm}, which a start waits for", ""
    if record.state in ("DRAINING", "DETACHED"):
        why = f"a handover is at work: rehearse again when it has ended ({handover.STORY})"
        return f"it is on its way to VM {record.vm} ({record.state})", why
    if record.state in ("STUCK", "DEAD"):
        return f"it is {record.state}", record.why or "nothing is tried with such a card"
    if card.is_on_vfio():
        return "it is on vfio-pci already, not by this program: it stays there", ""
    return "", ""


def _look(card: SharedCard, vmid: str, reasons: list[str]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The containers that would be shut down, who ends with them, and who doesn't. All that stands against it is said
    at once, in `reasons`.
    """
    power = guests.power_of(card.system, "qm", vmid)
    if power == "on":
        reasons.append(
            f"VM {vmid} runs already, without it: a VM takes its card when it starts, so it is shut down first"
        )
    elif power == "unknown":
        reasons.append(f"it isn't known whether VM {vmid} runs (`qm status {vmid}`)")
    try:
        users = card_users.need_possible(card, vmid)
    except RefusedError as error:
        reasons.append(str(error))
        users = []
        try:
            users = card_users.running_with(card)
        except RefusedError as other:
            reasons.append(str(other))
    else:
        if not card_users.names_card(card, vmid):
            reasons.append(
                f"VM {vmid} doesn't have it: no hostpci option of it names the card, which `pulumi up` gives it"
            )
    processes: list[str] = []
    if card.driver == "nvidia":
        try:
            processes = card_users.processes_with(card)
        except RefusedError as error:
            reasons.append(str(error))
    ends = tuple(card_users.processes_that_end(processes, users))
    stays = tuple(process for process in processes if process not in ends)
    return tuple(user.ctid for user in users), ends, stays
