"""A card that VMs of a stack aren't to have any more is taken out of them, with the others that they lose in the same
run, so that each is restarted once (guests/taking.py).
"""

from __future__ import annotations

from remote_scripts.both.free_card import Wanted
from remote_scripts.guests import taking
from remote_scripts.pve.api import NodeApi
from remote_scripts.tools.files import Changed
from remote_scripts.tools.system import System


def apply(system: System, wanted: Wanted) -> Changed:
    """Takes it out of all others of the stack on this node.

    :raises Failure: as of `taking.take`.
    """
    api = NodeApi(system)
    keepers = [int(vmid) for vmid, mappings in wanted.keeps.items() if not set(wanted.card).isdisjoint(mappings)]
    losers = taking.losers(system, wanted.stack, wanted.card, keepers)
    for vmid in losers:
        taking.take(system, api, vmid, wanted.card, wanted.keeps.get(str(vmid), ()))
    return Changed(bool(losers))
