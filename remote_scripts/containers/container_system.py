"""A container of this host as the system that a layer works on, once it is known where it is, and that it runs."""

from __future__ import annotations

from pathlib import Path

from remote_scripts.pve.guest_kinds import CONTAINER
from remote_scripts.pve.guests import place_of, power_of
from remote_scripts.pve.pmxcfs import this_node
from remote_scripts.tools.container import ContainerSystem
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


def need_running(host: System, ctid: int) -> ContainerSystem:
    """The container, which answers.

    :raises Failure: it is none of this node, or doesn't run, or doesn't answer.
    """
    inside = ContainerSystem(ctid, host)
    try:
        # A simulated one is a folder, whose name it alone knows.
        inside.set_root(inside.run.ask("printenv", "HOMELAB_ROOT").text if host.root != Path("/") else "")
        inside.files.is_folder("/")
    except Failure:
        power = power_of(host, "pct", str(ctid))
        if power == "off":
            raise Failure(
                f"container {ctid} running",
                "pct status: status: stopped",
                "what is in it is read and changed from inside",
                f"start it: `pct start {ctid}`, then run `pulumi up` again",
            ) from None
        if power == "gone":
            need_container(host, ctid)
        raise
    return inside


def is_gone(host: System, ctid: int) -> bool:
    """Whether there is no such container, on any node, so that there is nothing to take out of it.

    :raises Failure: it is on another node; or what guests there are can't be read.
    """
    node, _ = place_of(host, CONTAINER, ctid)
    if node:
        need_container(host, ctid)
    else:
        host.log.say(f"container {ctid} is gone: there is nothing to take out of it")
    return not node
