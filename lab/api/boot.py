"""After a host's boot: no task runs any more, and the guests that came up with it are started as pve-guests does it."""

from __future__ import annotations

from lab.host.state import HostState

from . import lxc, qemu_power
from .errors import ApiError
from .guests import exclusively
from .tasks import Tasks
from .users import ROOT


def settle(host: HostState) -> None:
    """Give the VMs that start with the host their devices, and the containers theirs; one that can't have them doesn't run."""
    with exclusively(host):
        tasks = Tasks(host)
        tasks.end_all()

        def report(kind: str, vmid: int, error: ApiError) -> None:
            upid, log = tasks.begin(kind, str(vmid), ROOT)
            tasks.end(upid, log, error)

        qemu_power.settle_after_boot(host, lambda vmid, error: report("qmstart", vmid, error))
        lxc.settle_after_boot(host, lambda vmid, error: report("vzstart", vmid, error))
