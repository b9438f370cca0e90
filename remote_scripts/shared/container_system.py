"""A container of this host as the system that a layer works on, once it is known that it runs, and where it is."""

from __future__ import annotations

import os
from pathlib import Path

from remote_scripts.shared.guests import power_of
from remote_scripts.shared.pmxcfs import NODES, PVE_LXC, this_node
from remote_scripts.shared.time_limit import within_limit
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

    def nodes_with_it() -> list[str]:
        folder = host.files.at(NODES)
        return [node for node in sorted(os.listdir(folder)) if (folder / node / f"lxc/{ctid}.conf").exists()]

    try:
        if within_limit(lambda: host.files.at(f"{PVE_LXC}/{ctid}.conf").exists()):
            return False
        nodes = within_limit(nodes_with_it)
    except OSError as error:
        raise Failure(
            f"to know whether container {ctid} is there",
            f"{NODES} can't be read: {error.strerror or error}",
            "what was installed in it is taken out, unless it is gone; nothing was changed",
            "see on the host what keeps the service pve-cluster, whose file system it is, then run the same again",
        ) from error
    if nodes:
        here = this_node(host).name or "this node"
        raise Failure(
            f"what was installed in container {ctid} taken out",
            f"it is on the node {nodes[0]} now",
            "it is reached through the node that it is on; nothing was changed in it",
            "run `pulumi up`, which finds it there, then the same again; or migrate it back while it is off: "
            f"`pct migrate {ctid} {here}` on {nodes[0]}",
        )
    host.log.say(f"container {ctid} is gone: there is nothing to take out of it")
    return True
