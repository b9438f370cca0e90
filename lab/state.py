"""What a lab's state folder holds besides the machine: lab.json, keys, logs, and who runs it.

Only the standard library is used here: this is imported by everything, also by commands that must
answer at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lab.host.state import append_line, write_atomically

FORMAT_VERSION = 2
LOG_NAMES = ("connections", "commands", "boots", "guests", "programs", "timers", "api")


class LabError(Exception):
    """The lab can't do what was asked. The text says what was wanted, found, why, and what to do next."""


@dataclass
class LabFile:
    """Contents of lab.json.

    `pid` and `started` name the daemon, None when it isn't running: `started` is the process's start time
    in clock ticks since the machine's boot (proc(5), field 22 of stat), without which a pid that the
    kernel has given to another process would pass for the daemon. `installed` is False while the stock
    tree is being written. `control` is the daemon's control socket. `resets` counts how often the host was
    made stock again. `guests` says how to reach the VMs, by id, as `ssh` the host.
    """

    scenario: str
    node: str
    pid: int | None
    started: int | None
    installed: bool
    control: str
    resets: int = 0
    ssh: dict[str, Any] = field(default_factory=dict)
    api: dict[str, Any] = field(default_factory=dict)
    guests: dict[str, Any] = field(default_factory=dict)
    version: int = FORMAT_VERSION


@dataclass(frozen=True)
class StatePaths:
    """Where things lie in a state folder."""

    state: Path

    @property
    def root(self) -> Path:
        """The host's file system."""
        return self.state / "root"

    @property
    def lab_file(self) -> Path:
        """lab.json."""
        return self.state / "lab.json"

    @property
    def user_key(self) -> Path:
        """The private key that the host accepts for root."""
        return self.state / "id_ed25519"

    @property
    def host_key(self) -> Path:
        """The SSH server's private key."""
        return self.state / "ssh_host_ed25519_key"

    def guest_key(self, vmid: int) -> Path:
        """Return the private key of a guest's SSH server; it stays the guest's through resets and reinstallations."""
        return self.state / "guest_keys" / str(vmid)

    @property
    def control_socket(self) -> Path:
        """The control socket, where its path is short enough for AF_UNIX."""
        return self.state / "control.sock"

    @property
    def daemon_log(self) -> Path:
        """What the daemon itself prints."""
        return self.state / "log" / "daemon.log"

    def log(self, name: str) -> Path:
        """Return the path of one of the JSON-lines logs (LOG_NAMES)."""
        return self.state / "log" / f"{name}.jsonl"


def read_lab_file(state: Path) -> LabFile | None:
    """Return lab.json's content; None when the folder holds no lab.

    Raises:
        LabError: the file is damaged, or of another version of the format.
    """
    path = StatePaths(state).lab_file
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise LabError(
            f"Unable to read the lab's {path}: wanted JSON, found {error}. Without it the lab's daemon and "
            f"keys are unknown. Remove {state} and start the lab again."
        ) from error
    if not isinstance(data, dict) or data.get("version") != FORMAT_VERSION:
        raise LabError(
            f"Unable to use the lab in {state}: wanted version {FORMAT_VERSION} of lab.json, found "
            f"{data.get('version') if isinstance(data, dict) else type(data).__name__}. It was made by "
            f"another version of the lab. Remove {state} and start the lab again."
        )
    return LabFile(**data)


def write_lab_file(state: Path, lab: LabFile) -> None:
    """Write lab.json, whole; `version` first, how to reach what is there last, as people read it."""
    first = {"version": lab.version, "scenario": lab.scenario, "node": lab.node, "pid": lab.pid}
    last = {"ssh": lab.ssh, "api": lab.api, "guests": lab.guests}
    rest = {name: value for name, value in lab.__dict__.items() if name not in last}
    text = json.dumps({**first, **rest, **last}, indent=2)
    write_atomically(StatePaths(state).lab_file, text + "\n")


def process_start_time(pid: int) -> int | None:
    """Return a live process's start time in clock ticks since boot; None when it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name, second and in parentheses, may hold spaces and parentheses itself.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def start_quietly(command: list[str], environment: dict[str, str]) -> int:
    """Start a process that outlives whoever starts it, and that nobody hears or waits for (so not by subprocess); return its pid."""
    nothing = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
    return os.posix_spawn(command[0], command, environment, file_actions=nothing, setsid=True)


def kill_group(leader: int, started: int) -> None:
    """Kill a process group by its leader's pid and start time; nothing happens when the leader has ended."""
    if process_start_time(leader) == started:
        os.killpg(leader, signal.SIGKILL)


def is_running(lab: LabFile | None) -> bool:
    """Return whether the daemon that lab.json names is alive: same pid and same start time."""
    return lab is not None and lab.pid is not None and process_start_time(lab.pid) == lab.started


@contextlib.contextmanager
def locked(state: Path, what: str, patience: float = 120.0) -> Iterator[None]:
    """Hold the folder's lock, so that two starts, stops or resets of one lab come one after the other.

    Args:
        what: what is to be done, for the error.
        patience: seconds to wait for another one to end.
    """
    state.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with (state / ".lock").open("w") as lock:
        # flock has no time limit of its own; the other holder is another start or stop, a second at most.
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LabError(
                        f"Unable to {what} the lab in {state}: another start, stop or reset of it has held "
                        f"{state}/.lock for {patience:.0f} seconds. End that one, then try again."
                    ) from None
                time.sleep(0.05)
        yield


def now() -> str:
    """Return the time for a log line: ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def append_log(state: Path, name: str, entry: dict[str, Any]) -> None:
    """Append one line to a log."""
    append_line(StatePaths(state).log(name), json.dumps(entry))


def read_log(state: Path, name: str) -> list[dict[str, Any]]:
    """Return a log's entries, oldest first; a last line that isn't ended yet is left out."""
    try:
        text = StatePaths(state).log(name).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
