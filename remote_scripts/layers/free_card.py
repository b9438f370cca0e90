"""A card that VMs of a stack aren't to have any more is taken out of them, with the others that they lose in the same
run, so that each is restarted once.
"""

from __future__ import annotations

from collections.abc import Collection

from remote_scripts.both.free_card import Wanted
from remote_scripts.both.terms import Terms
from remote_scripts.guests.change import bring, in_turn
from remote_scripts.guests.guest import Guest
from remote_scripts.notes import guest_notes
from remote_scripts.notes.guest_note import Note, Options, gives
from remote_scripts.pve import guest_conf, pmxcfs
from remote_scripts.pve.api import NodeApi
from remote_scripts.pve.guest_kinds import VM
from remote_scripts.pve.properties import parse
from remote_scripts.pve.vm_conf import options
from remote_scripts.tools.files import Changed
from remote_scripts.tools.system import System


def apply(system: System, wanted: Wanted) -> Changed:
    """Takes it out of all others of the stack on this node.

    :raises Failure: as of `bring`.
    """
    api, here, changed = NodeApi(system), pmxcfs.guest_ids(system, guest_conf.VMS), False
    for vmid in guest_notes.noted(system, VM):
        keeps = wanted.keeps.get(str(vmid), ())
        if str(vmid) in here and set(wanted.card).isdisjoint(keeps) and _has_it(system, wanted, vmid, keeps):
            _take(system, api, vmid, wanted.card, keeps)
            changed = True
    return Changed(changed)


def _has_it(system: System, wanted: Wanted, vmid: int, keeps: Collection[str]) -> bool:
    """Whether a VM has the card from this program. Of one that leaves its owner's own lines count, too: then what came
    along with the card isn't noted with it.
    """
    stays = keeps or str(vmid) in wanted.staying
    own = [] if stays else options(guest_conf.lines_of_vm(system, str(vmid)))
    return guest_notes.of(system, VM, vmid, Note).has_one_of(wanted.card, wanted.stack, own)


def _take(system: System, api: NodeApi, vmid: int, cards: Collection[str], keeps: Collection[str]) -> None:
    """Takes the cards out of a VM, and with its last one all that it has from this program.

    :param keeps: the mappings that it is to have.
    """
    with in_turn(Guest, system, api, vmid) as guest:
        if not guest.is_here:
            return
        note = guest.note
        given = {parse(*option).get("mapping", "") for option in _hostpci(note.wanted)} - {""}
        lost = {*cards, *given.difference(keeps)}
        kept = {key: value for key, value in note.wanted.items() if not gives(key, value, lost)}
        terms = Terms(owner=note.owner, shutdown=note.shutdown, otherwise=note.otherwise)
        bring(guest, kept if _hostpci(kept) else {}, terms)


def _hostpci(options: Options) -> list[tuple[str, str]]:
    return [(key, value) for key, value in options.items() if value and key.startswith("hostpci")]
