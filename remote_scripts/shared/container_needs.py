"""What a container has to be so that it can be given cards."""

from __future__ import annotations

from remote_scripts.shared import container_lines, pmxcfs
from remote_scripts.shared.card_nodes import Nodes
from remote_scripts.shared.container_conf import ContainerConf
from remote_scripts.shared.container_note import Cards
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System


def need_container(system: System, ctid: int) -> None:
    """:raises Failure: this host has no such container."""
    if pmxcfs.content_of(system, f"/etc/pve/qemu-server/{ctid}.conf") is not None:
        raise Failure(
            f"container {ctid}",
            f"{ctid} is a virtual machine",
            "cards are shared with containers; a VM gets one whole",
            "correct ctid; a VM is described under homelab:vms",
        )
    if pmxcfs.content_of(system, f"{pmxcfs.PVE_LXC}/{ctid}.conf") is not None:
        return
    elsewhere, here = pmxcfs.node_of(system, ctid), pmxcfs.this_node(system).name
    if elsewhere:
        raise Failure(
            f"container {ctid}",
            f"it is on the node {elsewhere}, not on this one",
            "a card is in one machine: a guest can have it only on the node that the card is in",
            f"migrate it to this node (on {elsewhere}, while it is off: `pct migrate {ctid} {here}`), or describe "
            f"{elsewhere} as a host of its own",
        )
    others = " ".join(pmxcfs.guest_ids(system, pmxcfs.PVE_LXC))
    raise Failure(
        f"container {ctid}",
        f"no such container on this host; there are: {others or 'none'}",
        "nothing can be given to it",
        "correct ctid, or describe the container under `create`",
    )


def need_open_nodes(system: System, ctid: int, cards: Cards, others: ContainerConf, nodes: Nodes) -> None:
    """A mount entry's node is the host's, for the host's groups. In an unprivileged container these are nobody's.

    :param others: what the configuration says without homelab's lines.
    :raises Failure: it could not be opened.
    """
    if cards.method != "mount-entry" or not others.unprivileged:
        return
    closed = []
    for node in nodes.nodes:
        device = system.files.device(node.path)
        if node.group and device and device.mode & 6 != 6 and not container_lines.provider(others, node.path):
            closed.append(f"{node.path} (mode {device.mode:o})")
    if closed:
        raise Failure(
            f"container {ctid}, which is unprivileged, given a card's nodes by mount entries",
            f"on the host only their group may open them: {' '.join(closed)}",
            "nobody in an unprivileged container is in the host's groups, so not even its root could open them; its "
            "configuration is unchanged",
            'take method: mount-entry out of the settings; or let the host\'s udev open them: MODE="0666" for '
            'KERNEL=="renderD*"',
        )


def not_lasting(ctid: int) -> Failure:
    """Its next start would take its lines away."""
    return Failure(
        f"container {ctid} given its devices by lxc.* lines",
        "its configuration has lxc.* lines, or `delete: lxc`, below [pve:pending]",
        "at its next start these take the place of all its lxc.* lines, homelab's among them; its configuration is "
        "unchanged",
        f"start it once, or restart it (`pct reboot {ctid}`), which moves them up; or move them above the section "
        "by hand; then run `pulumi up` again",
    )
