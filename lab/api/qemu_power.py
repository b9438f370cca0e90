"""A VM's power: starting it with its devices, stopping, pausing, and what a boot of the host makes of it.

Messages and order of checks are PVE::API2::Qemu's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from lab.host.pve_packages import is_pve9

from . import hooks, passthrough
from .call import Call, unheard
from .direct_boot import DirectBoot, power_off, power_on, require_files
from .errors import ApiError, Died
from .guest_config import GuestConfig
from .guests import Guest, await_config_lock, reacts, require_unlocked
from .quorum import require_cluster_ready, require_writable
from .tasks import TaskLog, Tasks, Work


def existing(guest: Guest) -> GuestConfig:
    """The configuration inside a task, whose message for a missing one is another."""
    if not guest.exists:
        raise Died(f"unable to find configuration file for VM {guest.vmid} on node '{guest.host.node}'")
    return guest.config()


def start_work(guest: Guest, log: Callable[[str], None], *, skip_lock: bool = False) -> Work:
    """Start a VM: pending changes come into force, its hookscript is run, devices are given to it.

    pre-start comes before anything of PCI is looked at; after a start that fails there is no post-stop (facts 1, 11).

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
        log(f"vm {guest.vmid} - {line}")
    if lock == "suspended":
        require_writable(guest.host, f"/etc/pve/{guest.relative_path}")
        del config.values["lock"]
        guest.save(config)
    if config.values.get("template") == "1":
        raise Died("you can't start a vm if it's a template")
    guest.take_pending(config)
    with hooks.locked(guest, config.values):
        yield from hooks.run(guest, config.values, "pre-start", log)
        while passthrough.waits_for(guest.host, config.values):
            yield 0.05
        _prepare(guest, config, log)
        yield 0.05
        if guest.exists:
            guest.set_running(True)
            power_on(guest)
            yield from hooks.run(guest, config.values, "post-start", log)


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
    """Note that a VM has gone off, whoever ended it, and take its devices back: its process is gone, and then its reservation."""
    guest.set_running(False)
    passthrough.cleanup(guest.host, guest.vmid, guest.config().values, log)


def ended_itself(guest: Guest) -> None:
    """Note that a VM has gone off and nobody of the node stopped it: `qm cleanup` looks after it; pre-stop there was none (fact 22)."""
    went_off(guest)
    hooks.begin_cleanup(guest, guest.config().values)


def stop_work(guest: Guest, log: Callable[[str], None], *, skip_lock: bool = False) -> Work:
    """Stop a VM at once; nothing happens to one that doesn't run, whatever its lock."""
    config = existing(guest)
    await_config_lock(guest, log)
    if not guest.running:
        return
    if not skip_lock:
        require_unlocked(guest, config)
    with hooks.locked(guest, config.values):
        yield from hooks.run(guest, config.values, "pre-stop", log)
        yield 0.05
        yield from _end(guest, config, log)
    _begin_cleanup(guest, config)


def _end(guest: Guest, config: GuestConfig, log: Callable[[str], None], by_cleanup: bool | None = None) -> Work:
    """A VM's end: QEMU, then what was reserved, then post-stop (fact 13)."""
    if not guest.running:
        return
    power_off(guest)
    went_off(guest, log)
    if not _left_to_cleanup(guest, by_cleanup):
        yield from hooks.run(guest, config.values, "post-stop", log)


def _left_to_cleanup(guest: Guest, by_cleanup: bool | None) -> bool:
    return not hooks.of_the_stop(guest.host) if by_cleanup is None else by_cleanup


def _begin_cleanup(guest: Guest, config: GuestConfig, by_cleanup: bool | None = None) -> None:
    if _left_to_cleanup(guest, by_cleanup):
        hooks.begin_cleanup(guest, config.values)


def shutdown_work(
    guest: Guest,
    log: Callable[[str], None],
    timeout: float,
    *,
    force: bool,
    skip_lock: bool = False,
    by_cleanup: bool | None = None,
) -> Work:
    """Shut a VM down, through its agent or ACPI, within a time limit in seconds.

    Args:
        by_cleanup: whether post-stop is left to `qm cleanup`; None: as the installed qemu-server has it.

    Raises:
        ApiError: it is locked, or didn't go off, and isn't to be forced.
    """
    config = existing(guest)
    await_config_lock(guest, log)
    if guest.running and not skip_lock:
        require_unlocked(guest, config)
    ran = guest.running
    with hooks.locked(guest, config.values):
        if ran:
            yield from hooks.run(guest, config.values, "pre-stop", log)
        does_react = yield from reacts(guest, timeout)
        if not does_react:
            if not force:
                raise Died("VM quit/powerdown failed - got timeout")
            log("VM still running - terminating now with SIGTERM")
        if "hookscript" not in config.values:
            await_config_lock(guest, log)
        if guest.running:
            yield 0.05
        yield from _end(guest, config, log, by_cleanup)
    if ran:
        _begin_cleanup(guest, config, by_cleanup)


def start(call: Call) -> str:
    """POST .../status/start."""
    guest = call.guest("qemu")
    require_cluster_ready(call.host)
    skip = bool(call.parameters.get("skiplock"))
    return call.start("qmstart", str(guest.vmid), lambda log: start_work(guest, log, skip_lock=skip))


def stop(call: Call) -> str:
    """POST .../status/stop."""
    guest = call.guest("qemu")
    skip = bool(call.parameters.get("skiplock"))
    tasks = Tasks(call.host)
    for task in tasks.running() if call.parameters.get("overrule-shutdown") else ():
        if (task.type, task.id) == ("qmshutdown", str(guest.vmid)):
            tasks.interrupt(task)
    return call.start("qmstop", str(guest.vmid), lambda log: stop_work(guest, log, skip_lock=skip))


def shutdown(call: Call) -> str:
    """POST .../status/shutdown."""
    guest = call.guest("qemu")
    force = bool(call.parameters.get("forceStop"))
    skip = bool(call.parameters.get("skiplock"))
    _say_why_it_cant_react(call, guest)
    if guest.paused and not force:
        raise Died("VM is paused - cannot shutdown")
    timeout = float(call.parameters.get("timeout", 180))
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
        requested = hooks.reboot_request(guest)
        requested.touch()
        try:
            yield from shutdown_work(guest, log, timeout, force=False, by_cleanup=False)
        finally:
            # `qm cleanup` takes it away before the start; whoever asked for a reboot that failed, at once (fact 15).
            requested.unlink(missing_ok=True)
        # It is `qm cleanup` that starts the VM again: a start that fails is no failure of this task.
        with contextlib.suppress(ApiError):
            require_cluster_ready(guest.host)
            yield from start_work(guest, unheard)

    return call.start("qmreboot", str(guest.vmid), work)


def _require_running(guest: Guest) -> None:
    if not guest.running:
        raise Died(f"VM {guest.vmid} not running")


def suspend(call: Call) -> str:
    """POST .../status/suspend: halts the processors."""
    guest = call.guest("qemu")
    guest.config()
    _require_running(guest)
    call.has_no("todisk")

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
        return call.start("qmresume", str(guest.vmid), lambda log: start_work(guest, log))
    _require_running(guest)

    def work(log: TaskLog) -> Work:
        await_config_lock(guest, log)
        yield 0.02
        guest.set_paused(False)

    return call.start("qmresume", str(guest.vmid), work)


def settle_after_boot(guest: Guest, log: Callable[[str], None]) -> None:
    """Give a VM that starts with the host, and has no hookscript, its devices.

    Raises:
        ApiError: it can't have them.
    """
    config = guest.config()
    guest.take_pending(config)
    _prepare(guest, config, log)
    power_on(guest)
