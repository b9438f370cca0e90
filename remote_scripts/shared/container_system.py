"""A container of this host as the system that a layer works on, once it is known that it runs, and where it is."""

from __future__ import annotations

from pathlib import Path

from remote_scripts.shared.guest_kinds import CONTAINER
from remote_scripts.shared.guests import place_of, power_of
from remote_scripts.shared.pmxcfs import this_node
from remote_scripts.tools.container import Container
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System


def need_running(host: System, ctid: int) -> Container:
    """The container, which answers.

    :raises Failure: it is none of this node, or doesn't run, or doesn't answer.
    """
    inside = Container(ctid, host)
    try:
        # A simulated one is a folder, whose name it alone knows.
        inside.set_root(inside.run.ask("printenv", "ROOT").text if host.root != Path("/") else "")
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
            raise Failure(
                f"container {ctid}",
                "this node has none of that number",
                "what is in it is read and changed from inside",
                "create the container, or take it out of the settings, then run `pulumi up` again",
            ) from None
        raise
    return inside


def is_gone(host: System, ctid: int) -> bool:
    """Whether there is no such container, on any node, so that there is nothing to take out of it.

    :raises Failure: it is on another node; or what guests there are can't be read.
    """
    node, is_here = place_of(host, CONTAINER, ctid)
    if is_here:
        return False
    if node:
        raise Failure(
            f"what was installed in container {ctid} taken out",
            f"it is on the node {node} now",
            "it is reached through the node that it is on; nothing was changed in it",
            "run `pulumi up`, which finds it there, then the same again; or migrate it back while it is off: "
            f"`pct migrate {ctid} {this_node(host).name}` on {node}",
        )
    host.log.say(f"container {ctid} is gone: there is nothing to take out of it")
    return True
