"""What a start of a VM would find now of the cards that it has in turn with containers. Changes nothing."""

from __future__ import annotations

from remote_scripts.cards import card_users
from remote_scripts.cards.handed_over import RecordedCard, RefusedError, SharedCard
from remote_scripts.cards.handover_driver import CardDriver
from remote_scripts.guests.start_conditions import Start, why_not
from remote_scripts.notes import handover
from remote_scripts.notes.card import Card, CardStart
from remote_scripts.notes.record import Record
from remote_scripts.pve import guests
from remote_scripts.pve.guest_kinds import VM
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.kernel import boot_id
from remote_scripts.tools.system import System


def of_vm(system: System, vmid: str) -> tuple[CardStart, ...]:
    """Of each shared card that the VM names; empty: it names none, it runs, or it isn't here."""
    try:
        cards = handover.cards(system) if system.files.exists(handover.CARDS) else ()
    except Failure:  # the host's own report says so
        return ()
    named = [card for card in cards if card_users.names_card(SharedCard(system, card), vmid)]
    power = guests.power_of(system, "qm", vmid) if named else "gone"
    if power in ("on", "gone"):
        return ()
    if power == "unknown":
        why = f"it isn't known whether VM {vmid} runs (`qm status {vmid}`)"
        return tuple(CardStart(card=card.name, refused=why) for card in named)
    return tuple(_found(system, card, vmid) for card in named)


def _found(system: System, card: Card, vmid: str) -> CardStart:
    """The checks of a handover, and its look at who has the card."""
    if int(vmid) not in card.vms:
        return CardStart(card=card.name, refused="the settings don't give it to this VM")
    try:
        recorded = RecordedCard(system, card)
        record = recorded.record if recorded.record.boot == boot_id(system) else Record()
        if record.state == "VM" and record.vm != vmid:
            raise RefusedError(f"VM {record.vm} has it since {record.at}: `qm shutdown {record.vm}` gives it back")
        if record.state not in ("HOST", "HELD", "VM"):
            raise RefusedError(f"{record.state}: {record.why or 'a step of it is still at work'}")
        if recorded.is_on_vfio():  # the VM's still, or by other configuration
            return CardStart(card=card.name)
        if found := why_not(Start(system, VM, int(vmid)), "doctor"):
            raise RefusedError(found)
        users = card_users.need_possible(recorded)
        card_users.need_unused(recorded, users)
        CardDriver(recorded).persistence()
    except RefusedError as error:
        return CardStart(card=card.name, refused=str(error))
    except Failure as failure:
        return CardStart(card=card.name, refused=f"{failure.wanted}: {failure.found}")
    return CardStart(card=card.name, containers=tuple(users))
