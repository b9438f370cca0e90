"""What happened in a lab, as a person reads it: its logs in one, in the order of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from lab.client import Lab

_COMMAND_SHOWN = 100


@dataclass(frozen=True)
class Event:
    """One thing that happened."""

    at: str
    kind: str
    text: str
    data: dict[str, Any]

    def __str__(self) -> str:
        clock = self.at[11:23] if self.at else "-"
        return f"{clock:<12}  {self.kind:<10}  {self.text}"


def _boot(entry: dict[str, Any]) -> str:
    network = "" if entry["network"] else ", without its network"
    if entry.get("problem"):
        network = f", failed: {entry['problem']}"
    return f"{entry['reason']}: {entry['kernel']} from {entry['entry']!r}{network}; cmdline: {entry['cmdline']}"


def _connection(entry: dict[str, Any]) -> str:
    where = _where(entry)
    if entry["accepted"]:
        return f"#{entry['n']}{where} {entry['user']} from {entry['peer']}"
    return f"#{entry['n']}{where} refused or given up: user {entry['user'] or 'never said'}, from {entry['peer']}"


def _where(entry: dict[str, Any]) -> str:
    """In which guest; nothing for the host."""
    return f" in VM {entry['guest']}:" if "guest" in entry else ""


def _shortened(command: str) -> str:
    line = command.replace("\n", " ⏎ ")
    return line if len(line) <= _COMMAND_SHOWN else line[:_COMMAND_SHOWN] + "…"


def _command(entry: dict[str, Any]) -> str:
    lost = ", its client was gone" if entry.get("client") == "lost" else ""
    took = (datetime.fromisoformat(entry["ended"]) - datetime.fromisoformat(entry["started"])).total_seconds()
    return (
        f"#{entry['n']}{_where(entry)} on connection #{entry['connection']}: exit {entry['exit']} after {took:.2f} s, "
        f"{entry['stdin_bytes']} bytes of stdin{lost}: {_shortened(entry['command'])}"
    )


def _program(entry: dict[str, Any]) -> str:
    note = f" ({entry['note']})" if entry.get("note") else ""
    return f"{' '.join([entry['program'], *map(str, entry['args'])])}: exit {entry['exit']}{note}"


def _timer(entry: dict[str, Any]) -> str:
    return f"{entry['unit']} ran {_shortened(entry['command'])}: exit {entry['exit']}"


def _api(entry: dict[str, Any]) -> str:
    given = " ".join(f"{name}={value}" for name, value in entry["parameters"].items())
    about = _shortened(f"{entry['method']} {entry['path']} {given}".rstrip())
    return f"{entry['who'] or 'nobody'}: {about}: {entry['status']} {entry['reason']}"


def _guest(entry: dict[str, Any]) -> str:
    return f"VM {entry['guest']}: {entry['kernel']}, boot id {entry['boot_id']}"


_KINDS: dict[str, tuple[str, str, Callable[[dict[str, Any]], str]]] = {
    "boots": ("boot", "at", _boot),
    "guests": ("guest", "at", _guest),
    "connections": ("connection", "at", _connection),
    "commands": ("command", "started", _command),
    "programs": ("program", "at", _program),
    "timers": ("timer", "started", _timer),
    "api": ("api", "at", _api),
}


def _time(value: object) -> str:
    """Return a log line's time as ISO 8601; programs write seconds since 1970."""
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC).isoformat(timespec="milliseconds")
    return str(value or "")


def history(lab: Lab) -> list[Event]:
    """Return all that a lab's logs hold, oldest first."""
    events = [
        Event(_time(entry.get(when)), kind, describe(entry), {"log": name, **entry})
        for name, (kind, when, describe) in _KINDS.items()
        for entry in lab.log(name)
    ]
    return sorted(events, key=lambda event: event.at)
