"""A VM's power: starting it with its devices, stopping, pausing, and what a boot of the host makes of it.

Messages and order of checks are PVE::API2::Qemu's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from lab.host.pve_packages import is_pve9
from lab.host.state import HostState

from . import passthrough
from .call import Call, unheard
from .direct_boot import DirectBoot, power_off, power_on, require_files
from .errors import ApiError, Died
from .guest_config import GuestConfig
from .guests import Guest, await_config_lock, guests_of, require_unlocked
from .quorum import require_cluster_ready, require_writable
from .tasks import TaskLog, Work


def existing(guest: Guest) -> GuestConfig:
    """The configuration inside a task, whose message for a missing one is another."""
    if not guest.exists:
        raise Died(f"unable to find configuration file for VM {guest.vmid} on node '{guest.host.node}'")
    return guest.config()


def start_work(guest: Guest, log: Callable[[str], None], *, skip_lock: bool = False) -> Work:
    """Start a VM: pending changes come into force, devices are given to it.

    Raises:
        ApiError: what the task ends with.
    """
    await_config_lock(guest, log)
    config = guest.config()
    lock = config.values.get("lock")
    if guest.paused and lock == "backup":
        guest.set_paused(False)  # a backup that was broken off left it halted
        return
    if not skip_lock and lock != "suspended":
        require_unlocked(guest, config)
    if guest.running:
        raise Died(f"VM {guest.vmid} already running")
    for line in config.unread:
        log(f"vm {guest.vmid} - unable to parse config: {line}")
    if lock == "suspended":
        require_writable(guest.host, f"/etc/pve/{guest.relative_path}")
        del config.values["lock"]
        guest.save(config)
    if config.values.get("template") == "1":
        raise Died("you can't start a vm if it's a template")
    if config.pending or config.pending_delete:
        config.apply_pending()
        guest.save(config)
    _prepare(guest, config, log)
    yield 0.05
    if guest.exists:
        guest.set_running(True)
        power_on(guest)


def _prepare(guest: Guest, config: GuestConfig, log: Callable[[str], None]) -> None:
    """Give a VM that is to start its devices, and look whether QEMU would find its files; a refusal leaves nothing reserved.

    Raises:
        ApiError: what the start fails with.
    """
    try:
        passthrough.attach(guest.host, guest.vmid, guest.pid, config.values, log)
        if direct := DirectBoot.of(config.values):
            require_files(guest.host, direct, log)
    except ApiError:
        passthrough.cleanup(guest.host, guest.vmid, config.values, log if is_pve9(guest.host) else unheard)
        raise


def went_off(guest: Guest, log: Callable[[str], None] = unheard) -> None:
    """Note that a VM has gone off, whoever ended it, and take its devices back."""
    guest.set_running(False)
    passthrough.cleanup(guest.host, guest.vmid, guest.config().values, log)


def stop_work(guest: Guest, log: TaskLog, *, skip_lock: bool = False) -> Work:
    """Stop a VM at once; nothing happens to one that doesn't run, whatever its lock."""
    config = existing(guest)
    await_config_lock(guest, log)
    if not guest.running:
        return
    if not skip_lock:
        require_unlocked(guest, config)
    yield 0.05
    power_off(guest)
    went_off(guest, log)


def shutdown_work(guest: Guest, log: TaskLog, timeout: float, *, force: bool, skip_lock: bool = False) -> Work:
    """Shut a VM down, through its agent or ACPI, within a time limit in seconds.

    Raises:
        ApiError: it is locked, or didn't go off, and isn't to be forced.
    """
    config = existing(guest)
    await_config_lock(guest, log)
    if guest.running and not skip_lock:
        require_unlocked(guest, config)
    waited = 0.0
    while guest.running and (guest.ignores_shutdown() or not guest.booted):
        if waited >= timeout:
            if not force:
                raise Died("VM quit/powerdown failed - got timeout")
            log("VM still running - terminating now with SIGTERM")
            break
        step = min(0.1, timeout - waited)
        yield step
        waited += step
    yield from stop_work(guest, log, skip_lock=True)


def start(call: Call) -> str:
    """POST .../status/start."""
    guest = call.guest("qemu")
    call.require_root_for("skiplock")
    require_cluster_ready(call.host)
    skip = bool(call.parameters.get("skiplock"))
    return call.start("qmstart", str(guest.vmid), lambda log: start_work(guest, log, skip_lock=skip))


def stop(call: Call) -> str:
    """POST .../status/stop."""
    guest = call.guest("qemu")
    call.require_root_for("skiplock")
    skip = bool(call.parameters.get("skiplock"))
    return call.start("qmstop", str(guest.vmid), lambda log: stop_work(guest, log, skip_lock=skip))


def shutdown(call: Call) -> str:
    """POST .../status/shutdown."""
    guest = call.guest("qemu")
    call.require_root_for("skiplock")
    timeout, force = float(call.parameters.get("timeout", 180)), bool(call.parameters.get("forceStop"))
    skip = bool(call.parameters.get("skiplock"))
    _say_why_it_cant_react(call, guest)
    if guest.paused and not force:
        raise Died("VM is paused - cannot shutdown")
    return call.start(
        "qmshutdown", str(guest.vmid), lambda log: shutdown_work(guest, log, timeout, force=force, skip_lock=skip)
    )


def _say_why_it_cant_react(call: Call, guest: Guest) -> None:
    """What a shutdown and a reboot print before they begin, when QEMU can't be asked."""
    if not guest.exists:
        call.say(f"unable to find configuration file for VM {guest.vmid} on node '{guest.host.node}'\n")
    elif not guest.running:
        call.say(f"VM {guest.vmid} not running\n")


def reboot(call: Call) -> str:
    """POST .../status/reboot: down and up again, with what was pending in force."""
    guest = call.guest("qemu")
    timeout = float(call.parameters.get("timeout", 180))
    _say_why_it_cant_react(call, guest)
    if guest.paused:
        raise Died("VM is paused - cannot shutdown")
    _require_running(guest)

    def work(log: TaskLog) -> Work:
        yield from shutdown_work(guest, log, timeout, force=False)
        # It is `qm cleanup` that starts the VM again: a start that fails is no failure of this task.
        with contextlib.suppress(ApiError):
            require_cluster_ready(guest.host)
            yield from start_work(guest, unheard)

    return call.start("qmreboot", str(guest.vmid), work)


def _require_running(guest: Guest) -> None:
    if not guest.running:
        raise Died(f"VM {guest.vmid} not running")


def suspend(call: Call) -> str:
    """POST .../status/suspend: halts the processors; to disk, not with a device passed through."""
    guest = call.guest("qemu")
    call.require_root_for("skiplock")
    values = guest.config().values
    _require_running(guest)
    if call.parameters.get("todisk"):
        call.require(f"/vms/{guest.vmid}", "VM.Config.Disk")
        if passthrough.hostpci_options(values):
            raise Died(
                "cannot suspend VM to disk due to passed-through PCI device(s), which lack the possibility to"
                " save/restore their internal state"
            )
        raise Died("the lab suspends no VM to disk")

    def work(log: TaskLog) -> Work:
        await_config_lock(guest, log)
        config = guest.config()
        if config.values.get("lock") != "backup" and not call.parameters.get("skiplock"):
            require_unlocked(guest, config)
        yield 0.02
        guest.set_paused(True)

    return call.start("qmpause", str(guest.vmid), work)


def resume(call: Call) -> str:
    """POST .../status/resume; one that sleeps on disk is started."""
    guest = call.guest("qemu")
    if guest.config().values.get("lock") == "suspended":
        call.require_root_for("skiplock")
        return call.start("qmresume", str(guest.vmid), lambda log: start_work(guest, log))
    return _on_running(call, "qmresume", lambda guest: guest.set_paused(False))


def reset(call: Call) -> str:
    """POST .../status/reset: the system in it begins anew."""
    return _on_running(call, "qmreset", lambda guest: guest.restart_system())


def _on_running(call: Call, kind: str, act: Callable[[Guest], None]) -> str:
    guest = call.guest("qemu")
    call.require_root_for("skiplock")
    guest.config()
    _require_running(guest)

    def work(log: TaskLog) -> Work:
        await_config_lock(guest, log)
        yield 0.02
        act(guest)

    return call.start(kind, str(guest.vmid), work)


def settle_after_boot(host: HostState, log: Any) -> None:
    """Give the VMs that start with the host their devices; one that can't have them doesn't run.

    Args:
        log: a function that makes a task's log for a VM id, and takes the error.
    """
    for guest in guests_of(host, "qemu"):
        if not guest.running:
            continue
        config = guest.config()
        if config.pending or config.pending_delete:
            config.apply_pending()
            guest.save(config)
        try:
            _prepare(guest, config, unheard)
            power_on(guest)
        except ApiError as error:
            guest.set_running(False)
            log(guest.vmid, error)
