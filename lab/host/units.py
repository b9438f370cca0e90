"""systemd units of a lab host: unit files, what is enabled, time spans, timers.

Units are looked up in /etc/systemd/system and /usr/lib/systemd/system. What is
active is in kernel.json (`units`), since it is gone with a reboot.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import holders
from .state import HOST_PYTHON, HostState

FOLDERS = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system")
_UNITS_OF_TIME = {
    "us": 1e-6,
    "usec": 1e-6,
    "ms": 1e-3,
    "msec": 1e-3,
    "s": 1,
    "sec": 1,
    "second": 1,
    "seconds": 1,
    "": 1,
    "m": 60,
    "min": 60,
    "minute": 60,
    "minutes": 60,
    "h": 3600,
    "hr": 3600,
    "hour": 3600,
    "hours": 3600,
    "d": 86400,
    "day": 86400,
    "days": 86400,
}
#: Services of packages that the lab's programs stand for: they run once they are started.
DAEMONS = frozenset({"docker.service", "containerd.service", "nvidia-persistenced.service"})
_DOCKER_CONFIG = "/etc/docker/daemon.json"
_START_SECONDS = 90  # DefaultTimeoutStartSec=


class UnitError(ValueError):
    """A unit file that systemd would refuse."""


def parse_time_span(text: str) -> float:
    """Seconds of a systemd time span: `90`, `90s`, `5min`, `1h 30min` (systemd.time(7)).

    Raises:
        UnitError: it isn't one.
    """
    total, rest = 0.0, text.strip()
    if not rest:
        raise UnitError("empty time span")
    while rest:
        match = re.match(r"(\d+(?:\.\d+)?)\s*([a-z]*)\s*", rest)
        if not match or match[2] not in _UNITS_OF_TIME:
            raise UnitError(f"Failed to parse time span: {text}")
        total += float(match[1]) * _UNITS_OF_TIME[match[2]]
        rest = rest[match.end() :]
    return total


def find(host: HostState, unit: str) -> Path | None:
    """The file of a unit, None when there is none."""
    for folder in FOLDERS:
        path = host.rooted(f"{folder}/{unit}")
        if path.is_file():
            return path
    return None


def parse(path: Path) -> dict[str, dict[str, list[str]]]:
    """Sections, keys and values of a unit file (an empty value resets a list)."""
    sections: dict[str, dict[str, list[str]]] = {}
    current: dict[str, list[str]] = {}
    for raw in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        if line.startswith("[") and line.endswith("]"):
            current = sections.setdefault(line[1:-1], {})
            continue
        key, _, value = line.partition("=")
        if not value.strip():
            current[key.strip()] = []
        else:
            current.setdefault(key.strip(), []).append(value.strip())
    return sections


def service_of(unit: str, sections: dict[str, dict[str, list[str]]]) -> str:
    """The unit that a timer starts."""
    named = sections.get("Timer", {}).get("Unit")
    return named[-1] if named else unit.removesuffix(".timer") + ".service"


def timer_of(host: HostState, unit: str) -> dict[str, Any]:
    """A timer as the lab runs it: unit, service, exec_start, on_boot and on_active in seconds or None.

    Raises:
        UnitError: no such timer or service, or a line that can't be understood.
    """
    path = find(host, unit)
    if path is None:
        raise UnitError(f"Unit {unit} not found.")
    sections = parse(path)
    service = service_of(unit, sections)
    service_path = find(host, service)
    if service_path is None:
        raise UnitError(f"{unit}: Refusing to start, unit {service} to trigger not loaded.")
    timer = sections.get("Timer", {})
    spans = {
        key: parse_time_span(timer[key][-1]) if timer.get(key) else None
        for key in ("OnBootSec", "OnActiveSec", "OnStartupSec")
    }
    on_boot = spans["OnBootSec"] if spans["OnBootSec"] is not None else spans["OnStartupSec"]
    return {
        "unit": unit,
        "service": service,
        "exec_start": exec_start(service_path),
        "on_boot": on_boot,
        "on_active": spans["OnActiveSec"],
    }


def repeats_after(host: HostState, unit: str) -> float | None:
    """The seconds after its service's end in which a timer starts it again; None where it doesn't, or isn't there any more."""
    path = find(host, unit)
    found = parse(path).get("Timer", {}).get("OnUnitInactiveSec") if path is not None else None
    return parse_time_span(found[-1]) if found else None


def exec_start(path: Path) -> str:
    """The command of a service; prefix characters (`-`, `+`) taken off, several ExecStart= lines in one shell.

    Raises:
        UnitError: it has none.
    """
    commands = [c.lstrip("-+!@:") for c in parse(path).get("Service", {}).get("ExecStart", [])]
    if not commands:
        raise UnitError(f"{path.name}: Service has no ExecStart=. Refusing.")
    return commands[0] if len(commands) == 1 else "/bin/sh -c " + shlex.quote(" && ".join(commands))


def rooted_command(host: HostState, command: str) -> str:
    """A command as bash runs it here: words that are files of the host's tree are taken from there, simulated
    commands given by path (`/sbin/reboot`) from the lab."""
    words = shlex.split(command)
    if words[0] == "/bin/sh":
        words[0] = "bash"  # which has the host's Python as a function
    rooted = []
    for index, word in enumerate(words):
        here = host.rooted(word) if word.startswith("/") and word != HOST_PYTHON else None
        if here is not None and (here.exists() or words[0] == HOST_PYTHON):
            rooted.append(str(here))
        elif index == 0 and here is not None and (host.state / "bin" / here.name).exists():
            rooted.append(str(host.state / "bin" / here.name))
        else:
            rooted.append(word)
    return shlex.join(rooted)


def is_oneshot(host: HostState, unit: str) -> bool:
    """Is it a service that has done its work when it was started?"""
    path = find(host, unit)
    return path is not None and parse(path).get("Service", {}).get("Type", ["simple"])[-1] == "oneshot"


def run_service(host: HostState, unit: str, environment: Mapping[str, str] | None = None) -> str:
    """Start a service as systemd does, a oneshot one to its end, and return its state: active, inactive or failed.

    Args:
        environment: that of the host's commands; None for this process's own.

    Raises:
        UnitError: it has no ExecStart=.
    """
    path = find(host, unit)
    sections = parse(path) if path is not None else {}
    service, about = sections.get("Service", {}), sections.get("Unit", {})
    if not service.get("ExecStart"):
        raise UnitError(f"{unit}: Service has no ExecStart=. Refusing.")
    if unit in DAEMONS:
        return "active"
    if not all(_condition_holds(host, text) for text in about.get("ConditionPathExists", [])):
        return "inactive"
    oneshot = is_oneshot(host, unit)
    commands = [*service.get("ExecStartPre", []), *service["ExecStart"]]
    limit = parse_time_span(service.get("TimeoutStartSec", [str(_START_SECONDS)])[-1])
    for number, command in enumerate(commands, 1):
        rooted = rooted_command(host, command.lstrip("-+!@:"))
        stays = not oneshot and number == len(commands)
        # What stays is left to whoever looks after this host's processes, as to systemd.
        text = f"setsid bash -c {shlex.quote(rooted)} &" if stays else rooted
        if not _succeeds(text, environment, limit) and not command.startswith("-"):
            return "failed"
        if stays:
            return "active"
    return "active" if service.get("RemainAfterExit", ["no"])[-1] in ("yes", "true", "1") else "inactive"


def _succeeds(text: str, environment: Mapping[str, str] | None, seconds: float) -> bool:
    import subprocess

    try:
        done = subprocess.run(
            ["/bin/bash", "-c", text],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def runs(host: HostState, unit: str) -> bool:
    """Whether a service that every host starts runs now."""
    return bool(host.running.get("units", {}).get(unit, "active") == "active")


def state(host: HostState, unit: str) -> str | None:
    """What was noted of a unit in this boot; None: nothing."""
    noted = host.running.get("units", {}).get(unit)
    return None if noted is None else str(noted)


def forget_removed(host: HostState) -> None:
    """What `systemctl daemon-reload` may do to services that are at work, and whose files are gone: they end as failed.

    systemd 257 has forgotten then which exit statuses and signals their SuccessExitStatus= named.
    """
    for unit, noted in host.running.get("units", {}).items():
        if noted == "activating" and find(host, unit) is None:
            note_state(host, unit, "failed")


def note_state(host: HostState, unit: str, state: str) -> None:
    """Note what systemd would say of a unit now; docker reads its configuration when it starts or is told to."""
    with host.changing_running() as running:
        running.setdefault("units", {})[unit] = state
        if unit == "docker.service" and state == "active":
            running["docker_config"] = host.read(_DOCKER_CONFIG, "")
        holders.update(host, running)


def _condition_holds(host: HostState, text: str) -> bool:
    return host.rooted(text.lstrip("|!")).exists() != text.lstrip("|").startswith("!")


def enabled_services(host: HostState) -> list[str]:
    """Services that a target or another unit wants at boot, in an order that fits their After= and Before=."""
    import graphlib

    base = host.rooted("/etc/systemd/system")
    # Not glob("*.wants/*.service"): before Python 3.13 that leaves out links whose target, seen from here, isn't there.
    folders = [*base.glob("*.wants"), *base.glob("*.requires")]
    linked = {link.name for folder in folders for link in folder.iterdir() if link.name.endswith(".service")}
    names = sorted(name for name in linked if _is_enabled(host, name))
    graph: dict[str, set[str]] = {name: set() for name in names}
    for name in names:
        for other in names:
            if other in orderings(host, name, "After"):
                graph[name].add(other)
            if other in orderings(host, name, "Before"):
                graph[other].add(name)
    try:
        return list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError:
        host.kernel_message("systemd[1]: Found ordering cycle on a unit; the order is by name")
        return names


def _is_enabled(host: HostState, unit: str) -> bool:
    masked = host.rooted(f"/etc/systemd/system/{unit}")
    return find(host, unit) is not None and not (masked.is_symlink() and str(masked.readlink()) == "/dev/null")


def orderings(host: HostState, unit: str, key: str) -> set[str]:
    """The units that a unit names in Before= or After=."""
    path = find(host, unit)
    lines: Iterable[str] = parse(path).get("Unit", {}).get(key, []) if path is not None else []
    return {name for line in lines for name in line.split()}


def required_by(host: HostState, unit: str) -> set[str]:
    """The units that a unit can't start without, by its .requires folder."""
    folder = host.rooted(f"/etc/systemd/system/{unit}.requires")
    return {link.name for link in folder.iterdir()} if folder.is_dir() else set()


def enabled_timers(host: HostState) -> list[dict[str, Any]]:
    """Timers that start with timers.target, with the seconds after boot at which each runs its service."""
    wants = host.rooted("/etc/systemd/system/timers.target.wants")
    found = []
    for link in sorted(wants.iterdir()) if wants.is_dir() else []:
        if not link.name.endswith(".timer"):
            continue
        try:
            timer = timer_of(host, link.name)
        except UnitError as error:
            host.kernel_message(f"systemd[1]: {error}")
            continue
        seconds = timer["on_boot"] if timer["on_boot"] is not None else timer["on_active"]
        if seconds is not None:
            found.append({"unit": link.name, "seconds_after_boot": seconds, "exec_start": timer["exec_start"]})
    return found
