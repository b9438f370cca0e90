"""What pve-guests does at the host's boot and shutdown: guests are started, or stopped, one after the other."""

from __future__ import annotations

import re
from typing import Literal

from lab.host.state import HostState

from . import ha_manager, hooks, lxc, qemu_power
from .errors import ApiError
from .guests import Guest, exclusively, guests_of
from .tasks import TaskLog, Tasks, Work

_LAST = 1 << 30
#: How long a shutdown waits for a guest; a node's 180 s are nothing to wait for in a lab.
_SHUTDOWN_SECONDS = 2.0


def settle(host: HostState) -> None:
    """Start the guests that come up with the host; one that can't have its devices doesn't run. No other task runs any more.

    Where one has a hookscript, they start in a node's order, by `startup` and then by id, VMs and containers mixed (fact 26): what
    the script sees is what has been started before it.
    """
    with exclusively(host):
        Tasks(host).end_all()
        wanted = _running(host)
        if not any("hookscript" in guest.config().merged() for guest in wanted):
            for guest in wanted:
                _settle_one(guest)
            return
        for guest in wanted:
            guest.set_running(False)
    for guest in sorted(wanted, key=_order):
        if "hookscript" in guest.config().merged():
            _carry_out(guest, "start")
        else:
            with exclusively(host):
                guest.set_running(True)
                _settle_one(guest)


def _settle_one(guest: Guest) -> None:
    of_kind, task = (qemu_power, "qmstart") if guest.kind == "qemu" else (lxc, "vzstart")

    def report(vmid: int, error: ApiError) -> None:
        tasks = Tasks(guest.host)
        upid, log = tasks.begin(task, str(vmid))
        tasks.end(upid, log, error)

    of_kind.settle_after_boot(guest, report)


def stop_all(host: HostState) -> None:
    """Stop the guests in the order against that of their start, as a host does that goes down (fact 26): a task of root's each, within `stopall` of pve-guests.

    What isn't seen of one without a hookscript is left out: it is off when the host is.
    """
    with exclusively(host):
        ha_manager.leave(host)
        tasks = Tasks(host)
        all_of_them, log = tasks.begin("stopall", "")
    for guest in sorted(_running(host), key=_order, reverse=True):
        if "hookscript" in guest.config().values:
            _carry_out(guest, "shutdown")
        else:
            with exclusively(host):
                tasks.end(*tasks.begin(f"{'qm' if guest.kind == 'qemu' else 'vz'}shutdown", str(guest.vmid)))
    with exclusively(host):
        tasks.end(all_of_them, log)


def _carry_out(guest: Guest, what: Literal["start", "shutdown"]) -> None:
    """A start or shutdown as a task of root's, to its end; how it ends is in its log."""
    is_vm, tasks = guest.kind == "qemu", Tasks(guest.host)

    def work(log: TaskLog) -> Work:
        if what == "start":
            return qemu_power.start_work(guest, log) if is_vm else lxc.start_work(guest, log)
        if is_vm:
            return qemu_power.shutdown_work(guest, log, _SHUTDOWN_SECONDS, force=True, by_cleanup=False)
        return lxc.shutdown_work(guest, log, _SHUTDOWN_SECONDS, force=True)

    with exclusively(guest.host):
        upid, log = tasks.begin(f"{'qm' if is_vm else 'vz'}{what}", str(guest.vmid))
    hooks.drive(guest.host, tasks.follow(upid, log, work(log)))


def _running(host: HostState) -> list[Guest]:
    return [guest for guest in (*guests_of(host, "qemu"), *guests_of(host, "lxc")) if guest.running]


def _order(guest: Guest) -> tuple[int, int]:
    found = re.search(r"(?:^|,)(?:order=)?(\d+)", guest.config().merged().get("startup", ""))
    return int(found[1]) if found else _LAST, guest.vmid
