"""systemctl, systemd-run and reboot of a lab host, or of a guest in it.

Timers and power are the daemon's: it is asked over the control socket. Without a daemon (a tree used alone),
timers are only noted, and a reboot is refused.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from typing import Any

from . import units
from .account_programs import current_user
from .program import Failure, Options, UsageError, ask_daemon, logged
from .state import HostState

#: Services that run on every Proxmox host.
STOCK = (
    "ssh.service",
    "pve-cluster.service",
    "pvedaemon.service",
    "pveproxy.service",
    "pvestatd.service",
    "pve-guests.service",
    "systemd-journald.service",
    "systemd-udevd.service",
    "cron.service",
    "networking.service",
    "pve-firewall.service",
    "qmeventd.service",
    "timers.target",
    "multi-user.target",
)
#: And on the guests' distributions.
GUEST_STOCK = (
    "ssh.service",
    "systemd-journald.service",
    "systemd-udevd.service",
    "systemd-networkd.service",
    "systemd-logind.service",
    "cron.service",
    "qemu-guest-agent.service",
    "timers.target",
    "multi-user.target",
)
_LONG = ("now", "quiet", "no-block", "no-pager", "value", "force")


def main(host: HostState, name: str, arguments: list[str]) -> int:
    """One of systemd's commands."""
    if name == "systemctl":
        return _systemctl(host, arguments)
    if name == "systemd-run":
        return _systemd_run(host, arguments)
    if Options(arguments, "fwdn", ("force", "no-wall", "reboot")).rest:
        raise UsageError("reboot: too many arguments")
    return logged(host, name, arguments, lambda: _reboot(host))


def _stock(host: HostState) -> tuple[str, ...]:
    return STOCK if host.machine.keys().isdisjoint({"guest", "container"}) else GUEST_STOCK


def _reboot(host: HostState) -> int:
    if current_user() != "root":
        raise Failure("Call to Reboot failed: Interactive authentication required.")
    if ask_daemon(host, "reboot") is None:
        raise Failure("Failed to connect to bus: the lab's daemon doesn't run, so nothing can reboot this host", 1)
    return 0


# -- systemctl -------------------------------------------------------------------------------------------
def _systemctl(host: HostState, arguments: list[str]) -> int:
    options = Options(arguments, "qnp:f", _LONG)
    verb, names = (options.rest[0], options.rest[1:]) if options.rest else ("", [])
    names = [n if "." in n else f"{n}.service" for n in names]
    quiet = options.has("q", "quiet")
    if verb == "reboot":
        return logged(host, "systemctl", arguments, lambda: _reboot(host))
    if verb == "is-active":
        return _is_active(host, names, quiet)
    if verb == "is-system-running":
        has_failed = "failed" in host.running.get("units", {}).values()
        state = "stopping" if host.running.get("stopping") else "degraded" if has_failed else "running"
        print(state)
        return int(state != "running")
    if verb == "show" and options.given[:2] == [("p", "NeedDaemonReload"), ("value", "")]:
        print("no")
        return 0
    if verb in ("status", "cat"):
        return _show(host, verb, names, options)
    changing = {
        "daemon-reload": _reload,
        "enable": _enable,
        "disable": _disable,
        "start": _start,
        "stop": _stop,
        "restart": _restart,
        "reload-or-restart": _reload_or_restart,
    }
    if verb not in changing:
        raise UsageError(f"Unknown command verb {verb}.")
    return logged(host, "systemctl", arguments, lambda: changing[verb](host, names, options))


def _known(host: HostState, unit: str) -> bool:
    return unit in _stock(host) or units.find(host, unit) is not None


def _require(host: HostState, verb: str, unit: str) -> None:
    if not _known(host, unit):
        raise Failure(f"Failed to {verb} {unit}: Unit {unit} not found.", 5)


def _state(host: HostState, unit: str) -> str:
    state = units.state(host, unit)
    if state is not None:
        return state
    if unit in _stock(host):
        return "active"
    if unit.endswith(".timer") and any(t["unit"] == unit for t in _daemon_timers(host)):
        return "active"
    return "inactive"


def _daemon_timers(host: HostState) -> list[dict[str, Any]]:
    answer = ask_daemon(host, "timers")
    timers: list[dict[str, Any]] = answer["timers"] if answer else []
    return timers


def _is_active(host: HostState, names: list[str], quiet: bool) -> int:
    states = [_state(host, n) for n in names]
    if not quiet:
        print("\n".join(states))
    return 0 if "active" in states else 4 if not any(_known(host, n) for n in names) else 3


def _links(host: HostState, unit: str) -> list[str]:
    """Folders of /etc/systemd/system in which enabling a unit puts a link, from its [Install] section."""
    path = units.find(host, unit)
    install = units.parse(path).get("Install", {}) if path else {}
    folders = [f"{t}.wants" for line in install.get("WantedBy", []) for t in line.split()]
    return folders + [f"{t}.requires" for line in install.get("RequiredBy", []) for t in line.split()]


def _enabled_state(host: HostState, unit: str) -> str:
    if host.rooted(f"/etc/systemd/system/{unit}").is_symlink():
        return "masked" if str(host.rooted(f"/etc/systemd/system/{unit}").readlink()) == "/dev/null" else "linked"
    base = host.rooted("/etc/systemd/system")
    if unit in _stock(host) or any(os.path.lexists(base / folder / unit) for folder in _links(host, unit)):
        return "enabled"
    path = units.find(host, unit)
    if path is None:
        return "not-found"
    return "disabled" if _links(host, unit) else "static"


def _reload(host: HostState, names: list[str], options: Options) -> int:
    units.forget_removed(host)
    return 0


def _enable(host: HostState, names: list[str], options: Options) -> int:
    for unit in names:
        path = units.find(host, unit)
        if path is None and unit not in _stock(host):
            raise Failure(f"Failed to enable unit: Unit file {unit} does not exist.", 1)
        for folder in _links(host, unit):
            link = f"/etc/systemd/system/{folder}/{unit}"
            if path and not os.path.lexists(host.rooted(link)):
                host.symlink(link, host.unrooted(path))
    return _start(host, names, options) if options.has("now") else 0


def _disable(host: HostState, names: list[str], options: Options) -> int:
    base = host.rooted("/etc/systemd/system")
    for unit in names:
        # Not glob(f"*.wants/{unit}"): before Python 3.13 that leaves out links whose target, seen from here, isn't there.
        folders = [*base.glob("*.wants"), *base.glob("*.requires")]
        found = [folder / unit for folder in folders if os.path.lexists(folder / unit)]
        if not found and not _known(host, unit):
            raise Failure(f"Failed to disable unit: Unit file {unit} does not exist.", 1)
        for link in sorted(found):
            link.unlink()
            print(f'Removed "{host.unrooted(link)}".', file=sys.stderr)
    return _stop(host, names, options) if options.has("now") else 0


def _start(host: HostState, names: list[str], options: Options) -> int:
    for unit in names:
        _require(host, "start", unit)
        if _enabled_state(host, unit) == "masked":
            raise Failure(f"Failed to start {unit}: Unit {unit} is masked.")
        if unit.endswith(".timer"):
            _start_timer(host, unit)
        elif unit.endswith(".service") and unit not in _stock(host):
            _start_service(host, unit, options.has("no-block"))
        else:
            units.note_state(host, unit, "active")
    return 0


def _reload_or_restart(host: HostState, names: list[str], options: Options) -> int:
    for unit in names:
        if _state(host, unit) == "active":
            units.note_state(host, unit, "active")
        else:
            _start(host, [unit], options)
    return 0


def _start_timer(host: HostState, unit: str) -> None:
    try:
        timer = units.timer_of(host, unit)
    except units.UnitError as error:
        raise Failure(
            f"Failed to start {unit}: {error}\nSee system logs and 'systemctl status {unit}' for details."
        ) from error
    if timer["on_active"] is None and timer["on_boot"] is None:
        raise Failure(f"Failed to start {unit}: Unit {unit} has a bad unit file setting.")
    since_boot = timer["on_active"] is None
    seconds = timer["on_boot"] if since_boot else timer["on_active"]
    ask_daemon(host, "timer-start", unit=unit, command=timer["exec_start"], seconds=seconds, since_boot=since_boot)
    units.note_state(host, unit, "active")


def _start_service(host: HostState, unit: str, no_block: bool) -> None:
    path = units.find(host, unit)
    assert path is not None  # _require has looked
    try:
        command = units.exec_start(path)
    except units.UnitError as error:
        raise Failure(f"Failed to start {unit}: {error}") from error
    if no_block:
        _start_detached(units.rooted_command(host, command))
        return
    state = units.run_service(host, unit)
    units.note_state(host, unit, state)
    if state == "failed":
        raise Failure(
            f"Job for {unit} failed because the control process exited with error code.\n"
            f'See "systemctl status {unit}" and "journalctl -xeu {unit}" for details.'
        )


def _stop(host: HostState, names: list[str], options: Options) -> int:
    for unit in names:
        timer = unit.endswith(".timer")
        stopped = timer and bool((ask_daemon(host, "timer-stop", unit=unit) or {}).get("stopped"))
        if not stopped and not _known(host, unit):
            raise Failure(f"Failed to stop {unit}: Unit {unit} not loaded.", 5)
        units.note_state(host, unit, "inactive")
    return 0


def _restart(host: HostState, names: list[str], options: Options) -> int:
    for unit in names:
        _require(host, "restart", unit)
    _stop(host, names, options)
    return _start(host, names, options)


def _show(host: HostState, verb: str, names: list[str], options: Options) -> int:
    status = 0
    for unit in names:
        path = units.find(host, unit)
        if not _known(host, unit):
            print(
                f"No files found for {unit}." if verb == "cat" else f"Unit {unit} could not be found.",
                file=sys.stderr,
            )
            status = 1 if verb == "cat" else 4
        elif verb == "cat" and path is not None:
            print(f"# {host.unrooted(path)}\n{path.read_text(encoding='utf-8')}", end="")
        else:
            state = _state(host, unit)
            print(
                f"{'●' if state == 'active' else '○'} {unit}\n     Loaded: loaded ({path and host.unrooted(path)};"
                f" {_enabled_state(host, unit)})\n     Active: {state}"
            )
            status = status or (0 if state == "active" else 3)
    return status


# -- systemd-run -----------------------------------------------------------------------------------------
def _systemd_run(host: HostState, arguments: list[str]) -> int:
    known = ("unit=", "no-block", "collect", "quiet", "property=", "wait", "pipe")
    split = _first_word(arguments, known)
    options = Options(arguments[:split], "u:Gqp:E:dt", known)
    command = arguments[split:]
    if not command:
        raise Failure("systemd-run: Command line to execute required.")
    unit = (options.value("u", "unit") or f"run-r{os.getpid():08x}").removesuffix(".service")

    def work() -> int:
        if units.find(host, f"{unit}.service"):
            why = f"Unit {unit}.service was already loaded or has a fragment file."
            raise Failure(f"Failed to start transient service unit: {why}")
        return _run_now(host, unit, shlex.join(command), options)

    return logged(host, "systemd-run", arguments, work)


def _first_word(arguments: list[str], known: tuple[str, ...]) -> int:
    """Where the command begins: options end at the first word that isn't one."""
    index = 0
    while index < len(arguments):
        word = arguments[index]
        if word == "--":
            del arguments[index]
            return index
        if not word.startswith("-"):
            return index
        takes = word in ("-u", "-p", "-E") or (word.startswith("--") and "=" not in word and f"{word[2:]}=" in known)
        index += 2 if takes else 1
    return index


def _start_detached(command: str) -> None:
    """A command on its own, as a unit is: nothing of the caller's session reaches it."""
    import subprocess

    subprocess.Popen(
        ["/bin/bash", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _run_now(host: HostState, unit: str, command: str, options: Options) -> int:
    rooted = units.rooted_command(host, command)
    for value in _properties(options, "After"):
        rooted = f'while [ "$(systemctl is-active {shlex.quote(value)})" = activating ]; do sleep 0.05; done; {rooted}'
    if not options.has("q", "quiet"):
        print(f"Running as unit: {unit}.service", file=sys.stderr)
    if options.has("wait", "pipe"):
        return _run_to_its_end(host, unit, rooted, options)
    _start_detached(rooted)
    return 0


def _properties(options: Options, name: str) -> list[str]:
    given = (value.partition("=") for key, value in options.given if key in ("p", "property"))
    return [value for key, _, value in given if key == name]


def _run_to_its_end(host: HostState, unit: str, command: str, options: Options) -> int:
    """`--pipe`, which hands its streams over, and `--wait`, whose unit writes to the journal.

    RuntimeMaxSec= ends a unit; what then still waits in the kernel is left behind, as systemd leaves it (fact 29).
    """
    import subprocess

    limit = next(iter(_properties(options, "RuntimeMaxSec")[::-1]), None)
    streams = None if options.has("pipe") else subprocess.DEVNULL
    process = subprocess.Popen(
        ["/bin/bash", "-c", command], stdin=streams, stdout=streams, stderr=streams, start_new_session=True
    )
    units.note_state(host, f"{unit}.service", "active")
    try:
        status = process.wait(None if limit is None else units.parse_time_span(limit))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        status = 1
    units.note_state(host, f"{unit}.service", "failed" if status and not options.has("G", "collect") else "inactive")
    return status
