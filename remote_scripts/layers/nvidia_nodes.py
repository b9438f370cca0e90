"""NVIDIA's device nodes in /dev: now, and at every boot before guests start.

Changes /usr/local/sbin/homelab-nvidia-nodes and /etc/systemd/system/homelab-nvidia-nodes.service, which is enabled; and
the nodes. Undone are the files and the service; nodes stay until the next boot, as others may use them.
"""

from __future__ import annotations

from collections.abc import Sequence

from remote_scripts.both.needed import Wanted
from remote_scripts.both.nvidia_nodes import Answer
from remote_scripts.nvidia import nvidia
from remote_scripts.tools import boot_service
from remote_scripts.tools.errors import Failure
from remote_scripts.tools.system import System, changes, plans

SERVICE = boot_service.Service(
    name="homelab-nvidia-nodes",
    layer="nodes",
    module="nvidia_nodes",
    without="after a reboot containers would find no device nodes",
    unit=f"""\
[Unit]
Description=NVIDIA device nodes for containers (homelab)
After=systemd-modules-load.service systemd-udevd.service
Before=pve-guests.service

[Service]
Type=oneshot
RemainAfterExit=yes
# A module that hangs must not keep the host's guests from starting.
TimeoutStartSec=120
ExecStart={boot_service.PYTHON} /usr/local/sbin/homelab-nvidia-nodes
""",
)


@plans
def plan(system: System, wanted: Wanted) -> None:
    """What `apply` would change. The driver may be installed only by the run that is planned."""
    boot_service.serve(system, SERVICE, needed=wanted.needed)


@changes
def apply(system: System, wanted: Wanted) -> Answer:
    """Makes the nodes, and has them made at each boot; or takes that away.

    :raises Failure: there is no driver, or nodes are missing still.
    :raises OSError: one can't be made.
    """
    return _change(system, wanted.needed)


@changes
def revert(system: System, wanted: Wanted) -> Answer:
    """Takes away what makes them, whatever `wanted` says."""
    return _change(system, False)


def program(system: System, arguments: Sequence[str]) -> None:
    """What the service does.

    :raises OSError: a node can't be made.
    """
    nvidia.make_nodes(system)


def _change(system: System, needed: bool) -> Answer:
    if needed:
        _need_driver(system)
    boot_service.serve(system, SERVICE, needed=needed)
    if needed:
        _make(system)
    return Answer(nvidia.loaded(system).version, system.files.changed)


def _need_driver(system: System) -> None:
    if trouble := nvidia.trouble(system):
        wanted, why = "NVIDIA's driver loaded on the host", "containers share the cards with the host's driver"
        raise Failure(wanted, trouble.found, why, trouble.next)


def _make(system: System) -> None:
    trouble = nvidia.make_nodes(system)
    if missing := nvidia.missing_nodes(system):
        raise Failure(
            "NVIDIA's device nodes in /dev",
            "; ".join(filter(None, (f"missing: {' '.join(missing)}", trouble))),
            "containers are given them",
            f"run {SERVICE.program} on the host and read `dmesg | tail`",
        )
