"""What a container has to be so that it can be given cards."""

from __future__ import annotations

from remote_scripts.pve.guest_kinds import CONTAINER
from remote_scripts.pve.guests import place_of
from remote_scripts.pve.pmxcfs import this_node
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System


def need_container(system: System, ctid: int) -> None:
    """:raises Failure: this host has no such container."""
    elsewhere, is_here = place_of(system, CONTAINER, ctid)
    if is_here:
        return
    here = this_node(system).name
    raise Failure(
        f"container {ctid}",
        f"it is on the node {elsewhere}, not on this one" if elsewhere else "no such container on this host",
        "a card is in one machine: a guest can have it only on the node that the card is in",
        f"migrate it to this node (on {elsewhere}, while it is off: `pct migrate {ctid} {here}`), or describe "
        f"{elsewhere} as a host of its own"
        if elsewhere
        else "correct ctid, or describe the container under `create`",
    )
