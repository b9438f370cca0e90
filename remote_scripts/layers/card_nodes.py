"""The lines of containers follow the nodes of their cards: at each boot before guests start, since the kernel may have
given the nodes other names and numbers; and where a card comes back from a VM.

Changes /usr/local/sbin/homelab-card-nodes and /etc/systemd/system/homelab-card-nodes.service, which is enabled; its
program, below, the configurations of containers: homelab's lines alone. Whatever fails, the host starts its guests.
"""

from __future__ import annotations

from collections.abc import Sequence

from remote_scripts.both.needed import Wanted
from remote_scripts.cards.container_follow import follow_at_boot, follow_containers
from remote_scripts.tools import boot_service
from remote_scripts.tools.files import Changed
from remote_scripts.tools.system import System, changes, plans

SERVICE = boot_service.Service(
    name="homelab-card-nodes",
    layer="cards",
    module="card_nodes",
    without="a boot may give the cards' nodes other numbers, and containers would not start, or get another card",
    unit=f"""\
[Unit]
Description=Nodes of graphics cards in containers, as they are numbered since this boot (homelab)
After=systemd-modules-load.service systemd-udevd.service pve-cluster.service homelab-nvidia-nodes.service
Before=pve-guests.service
RequiresMountsFor=/var/lib/homelab

[Service]
Type=oneshot
RemainAfterExit=yes
TimeoutStartSec=300
ExecStart=-{boot_service.PYTHON} /usr/local/sbin/homelab-card-nodes
""",
)


@plans
def plan(system: System, wanted: Wanted) -> None:
    """What `apply` would change."""
    boot_service.serve(system, SERVICE, needed=wanted.needed)


@changes
def apply(system: System, wanted: Wanted) -> Changed:
    """Has it done at each boot; or takes that away.

    :raises Failure: systemd doesn't read the service.
    """
    boot_service.serve(system, SERVICE, needed=wanted.needed)
    return Changed(system.files.changed)


@changes
def revert(system: System, wanted: Wanted) -> Changed:
    """Takes it away, whatever `wanted` says."""
    boot_service.serve(system, SERVICE, needed=False)
    return Changed(system.files.changed)


# The service's program.


def program(system: System, arguments: Sequence[str]) -> None:
    """What the service does; with `follow_containers` what a handover has done, which has this host's lock already."""
    if [*arguments] == ["follow_containers"]:
        follow_containers(system)
    else:
        follow_at_boot(system)
