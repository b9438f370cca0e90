"""What pve-guests does at the host's boot and shutdown: guests are started, or stopped, one after the other."""

from __future__ import annotations

import re
from typing import Literal

from lab.host import units
from lab.host.state import HostState

from . import ha_config, hooks, lxc, qemu_power
from .call import Call
from .errors import ApiError
from .guests import Guest, exclusively, guests_of
from .options import split_list
from .tasks import TaskLog, Tasks, Work

_LAST = 1 << 30
#: How long a shutdown waits for a guest; a node's 180 s are nothing to wait for in a lab.
_SHUTDOWN_SECONDS = 2.0


def settle(host: HostState) -> None:
    """Start the guests that come up with the host, in a node's order, by `startup` and then by id, VMs and containers mixed (fact 26):
    a task of root's each, within `startall` of pve-guests. One that can't have its devices doesn't run. No other task runs any more.

    Where one has a hookscript, what it sees is what has been started before it.
    """
    tasks = Tasks(host)
    with exclusively(host):
        tasks.end_all()
        if not units.runs(host, "pve-guests.service"):
            return
        all_of_them, log = tasks.begin("startall", "")
        wanted = sorted(_running(host), key=_order)
        has_hooks = any("hookscript" in guest.config().merged() for guest in wanted)
        for guest in wanted:
            if has_hooks:
                guest.set_running(False)
            else:
                _settle_one(guest)
    for guest in wanted if has_hooks else ():
        if "hookscript" in guest.config().merged():
            _carry_out(guest, "start")
        else:
            with exclusively(host):
                guest.set_running(True)
                _settle_one(guest)
    with exclusively(host):
        tasks.end(all_of_them, log)


def _settle_one(guest: Guest) -> None:
    of_kind, kind = (qemu_power, "qmstart") if guest.kind == "qemu" else (lxc, "vzstart")
    tasks, failed = Tasks(guest.host), ""
    upid, log = tasks.begin(kind, str(guest.vmid))
    try:
        of_kind.settle_after_boot(guest, log)
    except ApiError as error:
        failed = error.text
        guest.set_running(False)
    tasks.end(upid, log, failed)


def stop_all(host: HostState) -> None:
    """Stop the guests in the order against that of their start, as a host does that goes down (fact 26): a task of root's each, within `stopall` of pve-guests.

    What isn't seen of one without a hookscript is left out: it is off when the host is.
    """
    with exclusively(host):
        tasks = Tasks(host)
        all_of_them, log = tasks.begin("stopall", "")
        _set_clock(host)
    for guest in sorted(_running(host), key=_order, reverse=True):
        if "hookscript" in guest.config().values:
            _carry_out(guest, "shutdown")
        else:
            with exclusively(host):
                tasks.end(*tasks.begin(f"{'qm' if guest.kind == 'qemu' else 'vz'}shutdown", str(guest.vmid)))
    with exclusively(host):
        tasks.end(all_of_them, log)


def _set_clock(host: HostState) -> None:
    """What the fault stopall-clock says: NTP corrects the clock while guests go down."""
    if step := host.fault("stopall-clock"):
        with host.changing() as machine:
            machine["faults"]["clock-ahead"] = float(machine["faults"].get("clock-ahead") or 0) + float(step)


def stop_all_by_hand(call: Call) -> str:
    """POST .../stopall, the web interface's Bulk Shutdown, while the host goes on (PVE::API2::Nodes).

    Each guest's task is of whoever asks. One that doesn't follow is stopped, unless `force-stop` is 0. Guests that start together go down together.
    HA's are left alone unless `vms` has them.
    """
    asked = split_list(call.parameters.get("vms", ""))
    force = bool(call.parameters.get("force-stop", 1))

    def shutdown(guest: Guest, log: TaskLog) -> str:
        down = re.search(r"(?:^|,)down=(\d+)", guest.config().merged().get("startup", ""))
        timeout = float(down[1] if down else call.parameters.get("timeout", 180))
        log(f"Stopping {guest.label} (timeout = {timeout:.0f} seconds)")
        if guest.kind == "qemu":
            return call.start(
                "qmshutdown",
                str(guest.vmid),
                lambda log: qemu_power.shutdown_work(guest, log, timeout, force=force),
            )
        return call.start(
            "vzshutdown", str(guest.vmid), lambda log: lxc.shutdown_work(guest, log, timeout, force=force)
        )

    def work(log: TaskLog) -> Work:
        guests = [guest for guest in _of_node(call.host) if _is_meant(guest, asked)]
        for order in sorted({_order(guest)[0] for guest in guests}, reverse=True):
            together = [guest for guest in guests if _order(guest)[0] == order and guest.running]
            begun = [shutdown(guest, log) for guest in sorted(together, key=_order, reverse=True)]
            while {upid.text for upid in Tasks(call.host).running()} & {*begun}:
                yield 0.05

    return call.start("stopall", "", work)


def _is_meant(guest: Guest, asked: list[str]) -> bool:
    if asked:
        return str(guest.vmid) in asked
    return not ha_config.shown(guest)["managed"]


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
    return [guest for guest in _of_node(host) if guest.running]


def _of_node(host: HostState) -> list[Guest]:
    return [*guests_of(host, "qemu"), *guests_of(host, "lxc")]


def _order(guest: Guest) -> tuple[int, int]:
    found = re.search(r"(?:^|,)(?:order=)?(\d+)", guest.config().merged().get("startup", ""))
    return int(found[1]) if found else _LAST, guest.vmid
