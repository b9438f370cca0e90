"""What stands against a guest's start now: one table for all who ask. What ends a debt is asked before (starts.py):
HA, another guest of its id.

The starter starts guests that are owed a start. The hook (cards/card_handover.py) hands shared cards to a VM that
starts, whoever starts it: Proxmox VE itself has looked at its lock by then. The doctor tells what a start of a VM would
find; of guests that are owed one he asks as the starter does.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from remote_scripts.notes import handover
from remote_scripts.nvidia import nvidia
from remote_scripts.pve import guest_conf, guests, hookscripts, reservations
from remote_scripts.pve.guest_kinds import VM, Kind
from remote_scripts.pve.properties import overlap, slot_of
from remote_scripts.tools.system import System

Asker = Literal["starter", "hook", "doctor"]
_NUMBERS = re.compile(r"/dev/nvidia([0-9]+)")


@dataclass(frozen=True)
class Start:
    """A guest's start, as the conditions see it."""

    system: System
    kind: Kind
    vmid: int
    card: str = ""
    """The shared card for which it was shut down; empty: it wasn't for one."""
    back: Collection[str] = ()
    """Shared cards that this process has brought back to the host, whatever their records say."""

    @property
    def lines(self) -> list[str]:
        """Its configuration's own.

        :raises Failure: they can't be read.
        """
        return guest_conf.lines_of(self.system, self.kind, str(self.vmid))


def why_not(start: Start, asked_by: Asker) -> str:
    """What stands against a start now, in words; empty: nothing.

    :raises Failure: that can't be told.
    """
    found = (find(start) for find, askers in _TABLE if asked_by in askers)
    return next(filter(None, found), "")


def _find_run(start: Start) -> str:
    run = handover.run_at_work(start.system, str(start.vmid))
    return f"an up or a destroy of this host is at work: {run}" if run else ""


def _find_run_of_hooked(start: Start) -> str:
    return _find_run(start) if hookscripts.is_homelabs(guest_conf.option_of(start.lines, "hookscript")) else ""


def _find_backup(start: Start) -> str:
    if guest_conf.option_of(start.lines, "lock") != "backup":
        return ""
    return (
        f"a backup of VM {start.vmid}, which was off, would start it: the card stays with the containers (back the VM "
        f"up while it runs). If no backup is at work, its lock was left behind: `qm unlock {start.vmid}`"
    )


def _find_lock(start: Start) -> str:
    if lock := guest_conf.option_of(start.lines, "lock"):
        return f"it is locked, {lock} (once nothing works on it: `{start.kind.program} unlock {start.vmid}`)"
    return ""


def _find_other_vm(start: Start) -> str:
    """A VM that has a card of this one. Of several that an option may give, another one will do."""
    if start.kind is not VM:
        return ""
    # Of a VM that has ended one may be left, which Proxmox VE takes for nobody's.
    known = reservations.parse(start.system.files.text(reservations.FILE))
    running = {guest.id for guest in guests.running(start.system)} if known else set()
    others = [reserved for reserved in known if reserved.vmid in running - {start.vmid}]
    for places in guest_conf.places_of_vm(start.system, str(start.vmid)):
        for other in others:
            if places and all(overlap(place, slot_of(other.address)) for place in places):
                return f"VM {other.vmid} has its card"
    return ""


def _find_card_away(start: Start) -> str:
    """A shared card that a container's lines name, and that isn't with the host or that another process hands over. It
    is known by the number of its node; while NVIDIA's driver hasn't the card, by one that no other card has.
    """
    named = {int(number) for number in _NUMBERS.findall("\n".join(start.lines))}
    if not (named or start.card):
        return ""
    system, minors = start.system, nvidia.minors(start.system)
    for card in handover.cards(system) if system.files.exists(handover.CARDS) else ():
        others = {minor for gpu, minor in minors.items() if gpu != card.gpu}
        if card.name in start.back or not (card.name == start.card or named - others):
            continue
        is_handed = not start.back and system.work.is_locked(f"/run/homelab/{handover.HANDING}")
        if is_handed or handover.is_away(system, card.name):
            return f"gpus.{card.name} isn't back from a VM"
    return ""


_TABLE = (
    (_find_run, ("hook", "doctor")),
    (_find_run_of_hooked, ("starter",)),
    (_find_backup, ("hook", "doctor")),
    (_find_lock, ("starter", "doctor")),
    (_find_other_vm, ("starter", "doctor")),
    (_find_card_away, ("starter",)),
)
