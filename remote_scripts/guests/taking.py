"""A card taken out of the VMs of a stack that aren't to have it any more."""

from __future__ import annotations

from collections.abc import Collection

from remote_scripts.both.terms import Terms
from remote_scripts.guests.change import bring, in_turn
from remote_scripts.guests.guest import Guest
from remote_scripts.notes import guest_notes
from remote_scripts.notes.guest_note import Note, Options, gives
from remote_scripts.pve import pmxcfs
from remote_scripts.pve.api import NodeApi
from remote_scripts.pve.guest_kinds import VM
from remote_scripts.pve.properties import parse
from remote_scripts.tools.system import System


def losers(system: System, stack: str, cards: Collection[str], keepers: Collection[int]) -> list[int]:
    """The VMs of this node that have one of the cards from this program.

    :param stack: theirs, PROJECT/STACK.
    :param cards: their mappings and addresses.
    :param keepers: VMs that may have them.
    """
    here = pmxcfs.guest_ids(system, "/etc/pve/local/qemu-server")
    others = [vmid for vmid in guest_notes.noted(system, VM) if vmid not in keepers and str(vmid) in here]
    return [vmid for vmid in others if guest_notes.of(system, VM, vmid, Note).has_one_of(cards, stack)]


def take(system: System, api: NodeApi, vmid: int, cards: Collection[str], keeps: Collection[str] | None = None) -> None:
    """Takes the cards out of a VM, and with its last one all that it has from this program.

    :param keeps: the mappings that it is to have; None: all but those of the cards.
    :raises Failure: as of `bring`.
    """
    with in_turn(Guest, system, api, vmid) as guest:
        if not guest.is_here:
            return
        note = guest.note
        given = {parse(*option).get("mapping", "") for option in _hostpci(note.wanted)} - {""}
        lost = {*cards, *(() if keeps is None else given.difference(keeps))}
        kept = {key: value for key, value in note.wanted.items() if not gives(key, value, lost)}
        terms = Terms(owner=note.owner, shutdown=note.shutdown, otherwise=note.otherwise)
        bring(guest, kept if _hostpci(kept) else {}, terms)


def _hostpci(options: Options) -> list[tuple[str, str]]:
    return [(key, value) for key, value in options.items() if value and key.startswith("hostpci")]
